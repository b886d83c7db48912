"""Crop features in the forms that trackers ask for, and tracklets of what trackers give back.

No tracker is imported here: their objects are known by their attributes. Frames are BGR, as OpenCV
and all of these trackers have them, unless the encoder is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tfclip.encoding import BATCH_FRAMES
from tfclip.errors import FrameError
from tfclip.images import Channels, check_array, check_picture, read_picture
from tfclip.tracking.clips import Clip, ClipDescriber, FrameFeatures, crop_key
from tfclip.tracking.crops import box_rows, check_frame, cut_nearest
from tfclip.tracking.encoder import TrackletEncoder
from tfclip.tracking.tracked import tracked_boxes

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

BoxFormat = Literal["ltrb", "ltwh", "xywh"]


class CropEncoder:
    """Describe each detection of a frame by one vector, for trackers that match by appearance.

    A crop's vector is that of a tracklet of one frame, ``TFCLIP.encode_sequence([crop])``. Boxes
    are clipped to the frame; one without a pixel in it is described by the nearest pixel, so that
    every row is finite and of length 1, and is counted in ``num_outside``.

    It is what Roboflow's protocol (``extract_features``), BoxMOT (``get_features``), Ultralytics
    (the object itself) and deep-sort-realtime (``predict``) ask for; ``box_encoder`` gives a
    function of frame and boxes for anything else.

    Args:
        model: The encoder.
        tracklets: Tracks to keep with the same model: ``update_tracklets`` adds to them what a
            tracker made of a frame, without running the tower again over crops of the last call.
        batch_size: Crops that go through the tower at once.
        normalize: Give vectors length 1.
        channels: Order of the colours in frames and crops, ``"bgr"`` (OpenCV's) or ``"rgb"``.
            Files are RGB by themselves.

    Raises:
        ValueError: An argument is out of range, or ``tracklets`` has another model.

    Example:
        >>> from tfclip import TFCLIP
        >>> encoder = CropEncoder(TFCLIP.from_pretrained("tfclip-tiny"))
        >>> frame = np.zeros((240, 320, 3), dtype=np.uint8)
        >>> encoder.get_features([[10, 20, 60, 160], [300, 0, 340, 100]], frame).shape
        (2, 352)
    """

    def __init__(
        self,
        model: TFCLIP,
        *,
        tracklets: TrackletEncoder | None = None,
        batch_size: int = BATCH_FRAMES,
        normalize: bool = True,
        channels: Channels = "bgr",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if channels not in get_args(Channels):
            raise ValueError(f"channels must be one of {get_args(Channels)}, got {channels!r}")
        if tracklets is not None and tracklets.model is not model:
            raise ValueError("tracklets must have the same model as the CropEncoder, got another")
        self.model = model
        self.tracklets = tracklets
        self.batch_size = batch_size
        self.normalize = normalize
        self.channels: Channels = channels
        self.num_outside = 0
        self._recent: dict[bytes, FrameFeatures] = {}

    # --- what trackers read of an encoder --------------------------------------------------------

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width to which crops are resized."""
        return self.model.config.frame_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def embedding_dim(self) -> int:
        """Width of a vector, ``F``."""
        return self.model.embedding_dim

    # --- what trackers call ----------------------------------------------------------------------

    def extract_features(self, detections: Any, frame: np.ndarray) -> np.ndarray:
        """Describe the detections of a frame: Roboflow's protocol.

        Args:
            detections: Has ``xyxy``, left, top, right and bottom in pixels, ``(M, 4)``: a
                ``supervision.Detections``.
            frame: ``(H, W, 3)`` uint8, BGR unless ``channels`` says otherwise.

        Returns:
            ``(M, F)`` float32.

        Raises:
            FrameError: The frame or the boxes cannot be used.
            TypeError: ``detections`` has no boxes, or the frame is no ndarray.
        """
        if not hasattr(detections, "xyxy"):
            raise TypeError(f"detections must have .xyxy, got {type(detections).__name__}")
        return self._describe_boxes(frame, detections.xyxy, "ltrb")

    def extract_features_from_paths(
        self, paths: Iterable[str | Path], *, batch_size: int = BATCH_FRAMES, normalize: bool = True
    ) -> np.ndarray:
        """Describe crops that are image files, each one crop: Roboflow's protocol.

        Args:
            paths: The files, ``M`` of them.
            batch_size: Crops that go through the tower at once.
            normalize: Give vectors length 1.

        Returns:
            ``(M, F)`` float32.

        Raises:
            FrameError: A file is missing, damaged or no image.
            TypeError: ``paths`` is one path.
        """
        if isinstance(paths, (str, Path)):
            raise TypeError(f"paths must be several paths, got one, {str(paths)!r}; make it a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        files = list(paths)
        for place, path in enumerate(files):
            check_picture(path, f"paths[{place}]")
        rows = []
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            crops = [read_picture(path, str(path)) for path in part]
            rows.append(self._describe(crops, normalize))
        return np.concatenate(rows) if rows else np.empty((0, self.embedding_dim), np.float32)

    def get_features(self, xyxys: Any, img: np.ndarray) -> np.ndarray:
        """Describe the boxes of a frame: BoxMOT's protocol.

        Args:
            xyxys: Left, top, right and bottom in pixels, ``(M, 4)``.
            img: As ``frame`` of ``extract_features``.

        Returns:
            ``(M, F)`` float32.

        Raises:
            FrameError: The frame or the boxes cannot be used.
            TypeError: The frame is no ndarray.
        """
        return self._describe_boxes(img, xyxys, "ltrb")

    def __call__(self, img: np.ndarray, dets: Any) -> list[np.ndarray]:
        """Describe the boxes of a frame: Ultralytics' protocol.

        Args:
            img: As ``frame`` of ``extract_features``.
            dets: Centre x, centre y, width and height in pixels, ``(M, 4)``; what follows in a row
                is not read.

        Returns:
            ``M`` arrays ``(F,)`` float32.

        Raises:
            FrameError: The frame or the boxes cannot be used.
            TypeError: The frame is no ndarray.
        """
        return list(self._describe_boxes(img, dets, "xywh"))

    def predict(self, np_images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Describe crops: what deep-sort-realtime calls of its ``embedder``.

        Args:
            np_images: Crops ``(h, w, 3)`` uint8, BGR unless ``channels`` says otherwise.

        Returns:
            One array ``(F,)`` float32 each.

        Raises:
            FrameError: A crop is empty or no picture.
        """
        for place, crop in enumerate(np_images):
            check_array(crop, f"np_images[{place}]")
        crops = [read_picture(crop, "np_images", self.channels) for crop in np_images]
        return list(self._describe(crops, self.normalize))

    def box_encoder(self, boxes: BoxFormat = "ltwh") -> Callable[[np.ndarray, Any], np.ndarray]:
        """Return a function of a frame and its boxes ``(M, 4)`` that gives ``(M, F)``.

        Args:
            boxes: ``"ltwh"`` (left, top, width, height, as DeepSORT has), ``"ltrb"`` (left, top,
                right, bottom) or ``"xywh"`` (centre, width, height).

        Raises:
            ValueError: ``boxes`` is unknown.
        """
        if boxes not in get_args(BoxFormat):
            raise ValueError(f"boxes must be one of {get_args(BoxFormat)}, got {boxes!r}")
        return lambda frame, rows: self._describe_boxes(frame, rows, boxes)

    # --- what trackers give back -----------------------------------------------------------------

    def update_tracklets(
        self,
        tracked: Any,
        frame: np.ndarray,
        time: float | None = None,
        *,
        camera: int | None = None,
        detections: Iterable[Any] | None = None,
    ) -> dict[Hashable, Tensor]:
        """Add what a tracker made of a frame to ``tracklets``.

        Args:
            tracked: What the tracker returned; see ``tracked_boxes``.
            frame: The frame it was made of.
            time: As in ``TrackletEncoder.update_frame``, and so on.
            camera: Number of the camera.
            detections: As in ``tracked_boxes``.

        Returns:
            The embedding, ``(F,)``, of each track that was seen in the frame.

        Raises:
            ValueError: There is no ``tracklets``; or as ``TrackletEncoder.update_frame``.
            TypeError: ``tracked`` is of no kind that is known.
        """
        if self.tracklets is None:
            raise ValueError("tracklets must be given to the CropEncoder to be updated, got None")
        ids, boxes = tracked_boxes(tracked, detections)
        self.tracklets._recent = self._recent
        try:
            return self.tracklets.update_frame(
                ids, frame, boxes, time, camera=camera, channels=self.channels
            )
        finally:
            self.tracklets._recent = {}

    # --- describing ------------------------------------------------------------------------------

    def _describe_boxes(self, frame: np.ndarray, boxes: Any, form: BoxFormat) -> np.ndarray:
        check_frame(frame)
        crops, outside = cut_nearest(frame, to_edges(box_rows(boxes, more=True), form))
        self.num_outside += outside
        crops = [read_picture(crop, "frame", self.channels) for crop in crops]
        return self._describe(crops, self.normalize, keep=self.tracklets is not None)

    def _describe(
        self, crops: list[np.ndarray], normalize: bool, *, keep: bool = False
    ) -> np.ndarray:
        """Describe RGB crops, (M, F); keep what the tower gave where tracklets may want it."""
        describer = (
            ClipDescriber(self.model, self.batch_size)
            if self.tracklets is None
            else self.tracklets._describer
        )
        self._recent = {}
        clips: list[Clip] = []
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            frames = describer.read(part, [-1] * len(part))
            new = [Clip([0], [frame]) for frame in frames]
            describer.describe(new)
            clips += new
            for crop, clip in zip(part, new, strict=True):
                if keep:
                    self._recent[crop_key(crop)] = clip.frames[0]
                clip.frames = []
        rows = [clip.embedding for clip in clips if clip.embedding is not None]
        vectors = torch.stack(rows) if rows else torch.empty(0, self.embedding_dim)
        return (F.normalize(vectors, dim=1) if normalize else vectors).numpy()


def to_edges(boxes: np.ndarray, form: BoxFormat) -> np.ndarray:
    """Return left, top, right and bottom of boxes ``(M, 4)``.

    Example:
        >>> to_edges(np.array([[50.0, 60.0, 20.0, 40.0]]), "xywh").tolist()
        [[40.0, 40.0, 60.0, 80.0]]
    """
    if form == "ltrb":
        return boxes
    corner, size = boxes[:, :2], boxes[:, 2:]
    if form == "xywh":
        corner = corner - size / 2
    return np.concatenate([corner, corner + size], axis=1)


def embedding_distance(first: Any, second: Any) -> float:
    """Return 1 - cos of the embeddings of two objects: norfair's ``reid_distance_function``.

    Args:
        first: Has ``embedding``, or ``last_detection`` that has it: a detection or tracked object.
        second: The same.

    Returns:
        From 0 to 2; 1 where one of them has no embedding.
    """
    vectors = []
    for one in (first, second):
        embedding = getattr(getattr(one, "last_detection", one), "embedding", None)
        if embedding is None:
            return 1.0
        vectors.append(np.asarray(embedding, dtype=np.float64).ravel())
    a, b = vectors
    if a.shape != b.shape:
        raise FrameError(f"embeddings must have one width, got {a.size} and {b.size}")
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
