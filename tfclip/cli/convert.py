"""``tfclip convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfclip.cli.shared import add_command, positive
from tfclip.files import check_folder, replace_when_done


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "convert",
        run,
        "the authors' checkpoint to a model folder",
        """
Convert a checkpoint of the TF-CLIP release to a folder with config.json,
model.safetensors and a model card, which --model and from_pretrained take. Sizes
are read from the weights; no code in the file is run. What only training needs
is dropped and listed, unless --with-objective keeps it.

Example:
  tfclip convert best_model.pth.tar mars-vit-b-16
""",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("out", type=Path, metavar="OUT_DIR")
    command.add_argument(
        "--with-objective",
        action="store_true",
        help="also write identity heads and prompt, to objective.safetensors",
    )
    command.add_argument(
        "--neck",
        choices=("before", "after"),
        default="before",
        help="take features before (default) or after their batch norms",
    )
    command.add_argument(
        "--clip-length", type=positive, default=8, metavar="T", help="frames in a clip (8)"
    )
    command.add_argument(
        "--frame-size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="height and width in pixels, if not 256 128",
    )
    command.add_argument(
        "--stride", type=positive, help="between patches, if neither their size nor 12"
    )


def run(options: argparse.Namespace) -> None:
    """Convert a checkpoint to a model folder."""
    from tfclip import convert

    check_folder(options.out)
    arguments: dict[str, Any] = {
        "neck": options.neck,
        "clip_length": options.clip_length,
        "frame_size": options.frame_size and tuple(options.frame_size),
        "stride": options.stride,
    }
    objective = None
    if options.with_objective:
        model, objective = convert.from_reference(
            options.checkpoint, with_objective=True, **arguments
        )
    else:
        model = convert.from_reference(options.checkpoint, **arguments)
    model.save_pretrained(options.out)
    config = model.config
    print(
        f"{options.out}: {config.backbone}, frames of {config.frame_size[0]} x "
        f"{config.frame_size[1]}, {config.num_cameras} cameras, vectors of {model.embedding_dim}"
    )
    if objective is not None:
        from safetensors.torch import save

        path = options.out / "objective.safetensors"
        with replace_when_done(path) as temporary:
            temporary.write_bytes(save(objective.state_dict()))
        print(
            f"{path}: heads of {objective.num_identities} "
            "identities and prompt; the CLIP-Memory is not in a checkpoint and is built anew"
        )
