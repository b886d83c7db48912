"""Where a camera enters a tower."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.towers import FAMILIES, TIMM, WITH_CAMERAS, build, codes, shared
from tfclip.errors import ConfigError


def first_input(backbone: Any, run: Callable[[], Any]) -> Tensor:
    """Return the tokens that enter the first block."""
    tower = backbone.tower
    block = tower.transformer.resblocks[0] if hasattr(tower, "transformer") else tower.blocks[0]
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        run()
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", WITH_CAMERAS)
def test_the_camera_enters_by_the_class_token_alone_where_there_is_one(name, frames):
    backbone = shared(name)
    code = codes(backbone.width)
    without = first_input(backbone, lambda: backbone(frames))
    changed = (first_input(backbone, lambda: backbone(frames, code)) - without).abs().amax(-1) > 0
    if backbone.has_class_token:
        assert changed[:, 0].all()
        assert not changed[:, 1:].any()
    else:
        own_class_token = hasattr(backbone.tower, "class_embedding")
        assert changed[:, int(own_class_token) :].all()
    with torch.inference_mode():
        difference = backbone(frames, code) - backbone(frames)
    assert (difference.abs().amax(-1) > 1e-6).all()  # it reaches every token of the output


@pytest.mark.parametrize("name", [n for n in WITH_CAMERAS if FAMILIES[n][2]])
def test_a_camera_is_a_shift_of_the_class_embedding(name, frames):
    backbone = build(name)
    code = codes(backbone.width, 1)
    with torch.inference_mode():
        expected = backbone(frames, code.expand(3, -1))
        tower = backbone.tower
        embedding = tower.class_embedding if hasattr(tower, "class_embedding") else tower.cls_token
        embedding += code.reshape(-1).view_as(embedding)
        torch.testing.assert_close(backbone(frames), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in WITH_CAMERAS if not FAMILIES[n][2]])
def test_without_class_token_a_camera_is_a_shift_of_every_place(name, frames):
    backbone = build(name)
    code = codes(backbone.width, 1)
    with torch.inference_mode():
        expected = backbone(frames, code.expand(3, -1))
        tower = backbone.tower
        clip = hasattr(tower, "positional_embedding")
        table = tower.positional_embedding[1:] if clip else tower.pos_embed
        table += code
        torch.testing.assert_close(backbone(frames), expected, atol=1e-5, rtol=1e-5)


def wait(barrier: threading.Barrier) -> None:
    barrier.wait()


@pytest.mark.parametrize("name", [n for n in WITH_CAMERAS if n in TIMM][:1])
def test_cameras_of_two_threads_do_not_mix(name, frames):
    backbone = build(name)
    code = codes(backbone.width)
    with torch.inference_mode():
        expected = [backbone(frames, code), backbone(frames), backbone(frames, -code)]
    together = threading.Barrier(3, timeout=60)  # all are inside of the tower at once
    backbone.tower.patch_embed.register_forward_hook(lambda *_: wait(together))

    def run(code: Tensor | None) -> Tensor:
        with torch.inference_mode():
            return backbone(frames, code)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, [code, None, -code]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", WITH_CAMERAS)
def test_the_camera_vector_learns(name, frames):
    backbone = shared(name)
    code = codes(backbone.width).requires_grad_()
    backbone(frames, code)[:, 1 + backbone.num_registers :].square().sum().backward()
    assert code.grad is not None
    assert (code.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(WITH_CAMERAS)))
def test_cameras_are_refused_where_no_token_can_take_them(name):
    with pytest.raises(ConfigError, match="num_cameras must be 0"):
        build(name, num_cameras=2)
