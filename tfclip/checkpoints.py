"""Named tensors out of other people's files.

This is the only module that reads pickles, and it never runs code in one: pickles are read with
``weights_only=True`` and scripted archives by ``tfclip.scripted``.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tfclip.errors import WeightsError
from tfclip.scripted import is_scripted, read_scripted
from tfclip.tensors import read_safetensors
from tfclip.untrusted import check_archive, is_file, one_line


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors from safetensors, a pickled state dict or a scripted archive.

    ``module.`` before the names, left by data-parallel training, is removed.

    Raises:
        WeightsError: The file is missing, damaged, has code in it or holds something else.
    """
    path = Path(path)
    if not is_file(path):
        raise WeightsError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        return _plain_names(read_safetensors(path))
    try:
        if zipfile.is_zipfile(path):
            check_archive(path, WeightsError)
        if is_scripted(path):
            loaded = read_scripted(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of a protocol it seldom sees
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is no checkpoint at all, and was not loaded: a "
            "pickle can run any code"
        ) from error
    except PermissionError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can fail anywhere, with any exception
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise WeightsError(f"{path} cannot be read, it is damaged or cut off: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} must hold a state dict, got {type(loaded).__name__}")
    tensors = {name: x for name, x in loaded.items() if isinstance(x, Tensor)}
    if len(tensors) != len(loaded):
        other = next(name for name, x in loaded.items() if not isinstance(x, Tensor))
        raise WeightsError(f"{path} must hold tensors only, got {other!r}")
    return _plain_names(tensors)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}
