"""Encode one tracklet with an exported model: onnxruntime and numpy, no torch and no tfclip.

tfclip export person.onnx
python examples/consume_onnx.py person.onnx crops.npy         # (T, H, W, 3) uint8 RGB
python examples/consume_onnx.py person.onnx 1.jpg 2.jpg ...   # needs Pillow, which resizes too
"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["tfclip"])
wanted, length = about["frames"], about["tracklet"]["clip_length"]
if sys.argv[2].endswith(".npy"):
    frames = np.load(sys.argv[2])  # already of the model's height and width
else:
    from PIL import Image

    images = [Image.open(path).convert("RGB") for path in sys.argv[2:]]
    size, method = (wanted["width"], wanted["height"]), Image.Resampling[wanted["resize"].upper()]
    frames = np.stack([np.asarray(image.resize(size, method)) for image in images])
if wanted["normalize"]:
    frames = ((frames / 255 - wanted["mean"]) / wanted["std"]).astype(np.float32)
parts = [frames[start : start + length] for start in range(0, len(frames), length)]
clips = np.stack([np.resize(part, (length, *part.shape[1:])) for part in parts])  # repeats frames
inputs = {"frames": clips.transpose(0, 1, 4, 2, 3)}
if about["cameras"]["input"]:
    inputs["cameras"] = np.full(len(clips), -1)  # not known
embedding = np.asarray(session.run(["embedding"], inputs)[0]).mean(0)
print(json.dumps((embedding / np.linalg.norm(embedding)).tolist()))
