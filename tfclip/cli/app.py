"""``tfclip app``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tfclip.cli.shared import add_command, existing, layout, wrong_usage


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "app",
        run,
        "a page to drop tracklets on and search with",
        """
Run a page for the browser: drop the frames of a person or a video, choose a model,
and see the nearest tracklets of a gallery, and what the temporal memory looked at.
Without --gallery people are drawn to search among. The page is for this machine
alone, asks nothing of any other, and reports nothing; uploads are deleted after an
hour and at the end.

Example:
  tfclip app
  tfclip app --model mars-vit-b-16 --gallery crops/ --layout "{person}/{camera}/{tracklet}"
""",
    )
    command.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="a folder, a Hub repository owner/name or a bundled model (tfclip-tiny); may be "
        "repeated, to choose on the page",
    )
    command.add_argument(
        "--gallery",
        type=existing,
        metavar="SOURCE",
        help="a folder of tracklets, a file of tfclip encode or a folder of tfclip gallery",
    )
    command.add_argument(
        "--layout", type=layout, default="auto", help="of a folder of tracklets: see tfclip encode"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen on (127.0.0.1: this machine alone); with another, only the models given "
        "can be chosen",
    )
    command.add_argument(
        "--port", type=_port, metavar="N", help="(the first that is free from 7860 on)"
    )


def run(options: argparse.Namespace) -> None:
    """Run the page until Ctrl-C."""
    from tfclip import app
    from tfclip.app.serving import LOOPBACK

    app.check_gradio()

    import torch

    from tfclip import hub

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with wrong_usage():
        hub.check_device(device)
        page = app.build_app(
            options.model or "tfclip-tiny",
            options.gallery,
            layout=options.layout,
            any_model=options.host in LOOPBACK,
            device=device,
        )
    if options.host not in LOOPBACK:
        print(f"tfclip: everybody who can reach {options.host} can use this page", file=sys.stderr)
    app.serve(page, options.host, options.port)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r}")
    return int(text)
