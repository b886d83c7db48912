"""Named tensors: read from safetensors and nothing else, loaded into modules strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tfclip.errors import WeightsError

_NAMED_IN_REPORT = 3

MadeT = TypeVar("MadeT")


class MadeOfWeights(Generic[MadeT]):
    """What a function makes of a weight, kept for as long as that lives and does not change.

    Args:
        make: Takes a weight. Nobody may change what it returns.

    Example:
        >>> import torch
        >>> largest = MadeOfWeights(lambda weight: weight.max().item())
        >>> weight = torch.tensor([1.0, 2.0])
        >>> largest(weight), largest(weight.mul_(2))
        (2.0, 4.0)
    """

    def __init__(self, make: Callable[[Tensor], MadeT]) -> None:
        self._make = make
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # weight to state and made

    def __len__(self) -> int:
        return len(self._made)

    def __call__(self, weight: Tensor) -> MadeT:
        """Return what is known of a weight, or make it."""
        if weight.is_inference():  # such a tensor does not tell when it changes
            return self._make(weight)
        state = (weight._version, weight.data_ptr())
        known: tuple[tuple[int, int], MadeT] | None = self._made.get(weight)
        if known is None or known[0] != state:
            known = self._made[weight] = (state, self._make(weight))
        return known[1]


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file; no other format is ever opened.

    Args:
        path: The file.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        WeightsError: The file is missing, truncated, damaged or not safetensors; a pickle, which
            can run code, is named as such and not read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} {_fault(start)} ({error})") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module when they are exactly the ones that it has, and else none.

    Args:
        module: The module to fill.
        tensors: Values by the names of ``module.state_dict()``.
        source: Where the tensors come from, for the message.

    Raises:
        WeightsError: A tensor is missing, unexpected, or of another shape or kind.

    Example:
        >>> import torch
        >>> load_weights(nn.Linear(2, 1), {"weight": torch.zeros(1, 3), "gain": torch.ones(1)}, "x")
        Traceback (most recent call last):
        ...
        tfclip.errors.WeightsError: x does not fit Linear: 1 missing (bias); 1 unexpected (gain); \
1 of another shape (weight float32 (1, 3), not float32 (1, 2))
    """
    check_weights(module, tensors, source)
    module.load_state_dict(tensors)


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not exactly those that a module has; it may be without storage.

    Args:
        module: The module that they are for.
        tensors: Values by the names of ``module.state_dict()``.
        source: Where the tensors come from, for the message.

    Raises:
        WeightsError: A tensor is missing, unexpected, or of another shape or kind.
    """
    expected = module.state_dict()
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {_describe(tensors[name])}, not {_describe(own)}"
            for name, own in expected.items()
            if name in tensors and not _fits(tensors[name], own)
        ],
    }
    report = [f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names]
    if report:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {'; '.join(report)}")


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_IN_REPORT]) + (", ..." if len(names) > _NAMED_IN_REPORT else "")


def _fault(start: bytes) -> str:
    """Say what a file that is no safetensors file seems to be, from its first bytes."""
    if start.startswith(b"version https://git-lfs"):
        return "is a git LFS pointer to the weights, not the weights; run: git lfs pull"
    if start.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", start):
        return (
            "is a pickle, which can run code when it is read, so only `tfclip convert` reads "
            "pickles, and nothing of them but tensors"
        )
    return "is truncated, damaged or no safetensors file; delete it and fetch it again"
