"""Publish the authors' weights: convert, verify, describe, and upload when asked to.

    python examples/release_weights.py best_model.pth.tar org/name --out mars-vit-b-16
    python examples/release_weights.py best_model.pth.tar org/name --out mars-vit-b-16 --push

The first command converts the checkpoint into OUT, computes the embedding of frames that it draws
from a seed, stores both as golden.safetensors beside the weights, loads everything back, and lists
what an upload would send. A golden file that is there already is not replaced but compared with:
so a later version of tfclip, or another machine, shows that it still gives the same numbers.
Nothing leaves this machine without --push.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from safetensors.torch import load_file, save
from torch import Tensor

from tfclip import TFCLIP, convert
from tfclip.checkpoints import file_sha256
from tfclip.errors import SaveError, TFCLIPError, WeightsError
from tfclip.files import replace_when_done

FILES = ("config.json", "model.safetensors", "README.md", "golden.safetensors")
TOLERANCE = 5e-5  # of a feature, absolute: what two machines differ by in float32


def main(arguments: list[str] | None = None) -> int:
    """Convert, verify, describe; push if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="the authors' best_model.pth.tar")
    parser.add_argument("repo_id", help="org/name on the Hub")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is uploaded")
    parser.add_argument("--frame-size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--stride", type=int, help="between patches, if neither their size nor 12")
    parser.add_argument(
        "--report", type=Path, action="append", default=[], help="report.json of tfclip evaluate"
    )
    parser.add_argument("--push", action="store_true", help="upload; without it, only list")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    options = parser.parse_args(arguments)
    try:
        release(options)
    except (TFCLIPError, ValueError) as error:
        print(f"release_weights: {error}", file=sys.stderr)
        return 1
    return 0


def release(options: argparse.Namespace) -> None:
    """Do all steps in order; each one raises when it fails."""
    converted = convert.from_reference(
        options.checkpoint,
        frame_size=options.frame_size and tuple(options.frame_size),
        stride=options.stride,
    )
    reports = [read_report(path) for path in options.report]
    card = options.out / "README.md"
    if card.exists():
        print(f"{card} is there already and stays")
    converted.save_pretrained(options.out, name=options.repo_id, reports=reports)
    model = TFCLIP.from_pretrained(options.out)  # what others will load, not what is in memory
    verify_golden(model, options.out / "golden.safetensors")
    check_card(card)
    print(f"{'would upload' if not options.push else 'uploading'} to {options.repo_id}:")
    for name in FILES:
        path = options.out / name
        print(f"  {name:20} {path.stat().st_size:>12,} bytes  sha256 {file_sha256(path)}")
    if options.push:
        print(f"commit {push(options.repo_id, options.out, options.private)}")
    else:
        print("nothing was sent; --push sends it")


def read_report(path: Path) -> Any:
    """Return what ``tfclip evaluate --out`` wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--report must be a report.json, cannot read {path}: {error}") from error


def golden_frames(model: TFCLIP) -> Tensor:
    """Draw frames from a seed, (2, T, 3, H, W), as normalised pixels are distributed."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (2, config.clip_length, 3, *config.frame_size)
    return torch.randn(shape, generator=generator)


def embed(model: TFCLIP, frames: Tensor) -> Tensor:
    """Return the embeddings of clips without cameras, (2, F), in float32 on the CPU."""
    with torch.inference_mode():
        return model(frames).embedding.float().cpu()


def verify_golden(model: TFCLIP, path: Path) -> None:
    """Write golden frames and embeddings, or compare with those that are there.

    Raises:
        WeightsError: The model gives other embeddings than those stored.
        SaveError: The file cannot be written.
    """
    if not path.exists():
        frames = golden_frames(model)
        stored = {"frames": frames, "embedding": embed(model, frames)}
        with replace_when_done(path) as temporary:
            temporary.write_bytes(save(stored))
    golden = load_file(path)
    difference = (embed(model, golden["frames"]) - golden["embedding"]).abs().max().item()
    if not difference <= TOLERANCE:  # NaN too
        raise WeightsError(
            f"{path}: the model's embeddings differ by {difference:.3g}, {TOLERANCE:g} is allowed; "
            "remove the file only if that is meant"
        )
    print(f"golden outputs agree to {difference:.2g}")


def check_card(path: Path) -> None:
    """Read a card as the Hub's tools do; nothing of it may get lost on the way.

    Raises:
        ValueError: Its metadata is no valid YAML, or results in it are none.
    """
    card = ModelCard.load(path)
    again = ModelCard(str(card))
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError(f"the metadata of {path} do not survive being read and written")
    data: Any = card.data
    print(f"model card: {len(data.eval_results or [])} results, licence {data.license}")


def push(repo_id: str, folder: Path, private: bool) -> str:
    """Upload the files in one commit; return its hash.

    Raises:
        SaveError: The Hub cannot be reached or refuses.
    """
    api = HfApi(library_name="tfclip")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, folder / name) for name in FILES]
        commit = api.create_commit(repo_id, operations, commit_message="Release weights")
    except Exception as error:  # of the HTTP library that huggingface_hub uses
        reason = " ".join(str(error.__cause__ or error).split())
        raise SaveError(f"cannot push to {repo_id}: {reason}") from error
    return commit.oid


if __name__ == "__main__":
    sys.exit(main())
