"""Where something of the system or a package is missing, one sentence says so, or a slower way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tfclip import precision, speed
from tfclip.distributed import join_processes
from tfclip.errors import GalleryError, MissingExtraError
from tfclip.gallery import Gallery

CPU_INFO = Path("/proc/cpuinfo")


@pytest.fixture
def _forget_processor():
    """Have what is known of this processor found out anew, before and after."""
    known = (speed._has_onednn, speed._is_unknown_to_mkl, speed._has_amx)
    for answer in known:
        answer.cache_clear()
    yield
    for answer in known:
        answer.cache_clear()


def hide_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be a system that has no /proc/cpuinfo."""
    read = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path == CPU_INFO:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)


def test_several_processes_without_accelerate_name_the_extra(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        MissingExtraError, match=r"need Accelerate; install it with: pip install 'tfclip\[train\]'$"
    ):
        join_processes("cpu")


def test_without_file_locks_a_gallery_in_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(GalleryError, match="needs the file locks of Linux or macOS; on Windows"):
        Gallery.open(tmp_path / "g", dim=4)
    assert not (tmp_path / "g" / "gallery.json").exists()


def test_a_gallery_whose_system_refuses_the_lock_says_why(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="there are no file locks here")

    def refuse(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    gallery = Gallery.open(tmp_path / "g", dim=4)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(GalleryError, match=r"cannot lock .*g: No locks available$"):
        gallery.add(torch.eye(4))
    monkeypatch.undo()
    assert len(gallery) == 0


@pytest.mark.parametrize(
    ("processor", "machine", "name"),
    [("arm", "arm64", "arm"), ("", "riscv64", "riscv64")],
)
def test_a_processor_has_a_name_on_every_system(monkeypatch, processor, machine, name):
    hide_processor(monkeypatch)
    monkeypatch.setattr(precision.platform, "processor", lambda: processor)
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    assert precision.processor_name() == name


@pytest.mark.usefixtures("_forget_processor")
@pytest.mark.parametrize(
    ("maker", "unknown"),
    [("AMD64 Family 25 Model 97, AuthenticAMD", True), ("Intel64, GenuineIntel", False)],
)
def test_windows_too_says_who_made_the_processor(monkeypatch, maker, unknown):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    hide_processor(monkeypatch)
    monkeypatch.setattr(speed.platform, "processor", lambda: maker)
    assert speed._is_unknown_to_mkl() == unknown


@pytest.mark.usefixtures("_forget_processor")
def test_a_torch_without_mkl_has_nothing_that_does_not_know_a_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not speed._is_unknown_to_mkl()


def wrong_product(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.zeros(len(x), 4, dtype=x.dtype)


def other_signature(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.usefixtures("_forget_processor")
@pytest.mark.parametrize("operator", [None, other_signature, wrong_product])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_operators_of_onednn_a_product_is_the_same(monkeypatch, operator, dtype):
    x, weight = torch.ones(3, 256, dtype=dtype), torch.full((256, 256), 0.5, dtype=dtype)
    monkeypatch.setattr(speed, "_is_unknown_to_mkl", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", Operators(operator))
    with torch.inference_mode():
        found = speed.linear(x, weight, None)
    assert torch.equal(found, F.linear(x, weight))
    assert not speed._has_onednn(dtype)


class Operators:
    """Operators of oneDNN, of which the product is missing, or another one."""

    def __init__(self, operator: Any) -> None:
        if operator is not None:
            self._linear_pointwise = operator

    def _reorder_linear_weight(self, weight: torch.Tensor, rows: int) -> torch.Tensor:
        return weight


@pytest.mark.usefixtures("_forget_processor")
def test_a_torch_without_onednn_computes_the_same_product(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.ones(3, 256).bfloat16(), torch.full((256, 256), 0.5).bfloat16()
    with torch.inference_mode():
        assert torch.equal(speed.linear(x, weight, None), F.linear(x, weight))
    assert not speed._has_onednn(torch.bfloat16)
