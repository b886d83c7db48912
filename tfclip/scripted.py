"""Scripted (TorchScript) archives, as OpenAI publishes CLIP, read without running their code.

``torch.jit.load`` runs the ``__setstate__`` of every class in the archive, and such code may write
any file. Only the tensors are wanted here, so an object of any class is read as a plain record.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Beside its data, every scripted archive has its constants; a pickled state dict never has.
_MARK = "/constants.pkl"

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_scripted(path: Path) -> bool:
    """Tell a scripted archive from every other file."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(_MARK) for name in archive.namelist())


def read_scripted(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a scripted archive by name; no code in it is run.

    Raises:
        Exception: The archive is damaged or is more than modules of tensors. Of which type is not
            foreseeable: a pickle can break anywhere.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(n for n in archive.namelist() if n.endswith(_MARK)).removesuffix(_MARK)
        return dict(_named_tensors(_ArchiveReader(archive, root).load(), ""))


class _Record:
    """An object whose class is known by its name only: what was stored of it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArchiveReader(pickle.Unpickler):
    """Unpickles what modules are made of, and nothing that could do anything else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Record
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle":  # lists and dicts with their element types
            return _first
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"a scripted archive has no use for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, number, _, _ = pid
        content = self._archive.read(f"{self._root}/data/{number}")
        if not content:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(content), dtype=dtype)


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _named_tensors(record: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module and of the modules in it, as ``state_dict`` names them."""
    if not isinstance(record, _Record) or not isinstance(record.state, dict):
        return
    for name, value in record.state.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _named_tensors(value, f"{prefix}{name}.")
