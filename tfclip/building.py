"""Building a model without drawing its weights, whatever its configuration asks for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tfclip.backbones import import_library
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError, TFCLIPError
from tfclip.tensors import check_weights
from tfclip.untrusted import one_line

# A model makes its weights by these. While it is built in full it may make as much again, and a
# frame to try itself on.
_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand})
_SPARE_NUMBERS = 2**24

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_empty(
    cls: Callable[[TFCLIPConfig], ModuleT],
    config: TFCLIPConfig,
    tensors: Mapping[str, Tensor],
    source: str,
) -> ModuleT:
    """Build a model whose every weight is about to be replaced by these, on the CPU.

    Drawing random weights only to overwrite them takes longer than the rest of loading, so the
    model is built without storage where that works, and compared before it takes any. Some timm
    towers need values while they are built, or compute buffers that no file holds; those are built
    in full, in the memory that such weights account for.

    Args:
        cls: The model class, called with the configuration.
        config: What the model is to be.
        tensors: What will be loaded into it, by name.
        source: Where both come from, for messages.

    Returns:
        The model; its weights are arbitrary.

    Raises:
        WeightsError: The tensors are not those of the configuration.
        ConfigError: No model can be built of it, or only one of far more memory.
    """
    import_library(config)
    with torch.random.fork_rng(devices=[]):
        with contextlib.suppress(_BuildError), _building(source), torch.device("meta"):
            model = cls(config)
            check_weights(model, tensors, source)
            if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
                return model.to_empty(device="cpu")
        held = sum(tensor.numel() for tensor in tensors.values())
        with _building(source), torch.device("cpu"), _Bounded(2 * held + _SPARE_NUMBERS):
            return cls(config)


def part_widths(config: TFCLIPConfig) -> dict[str, int]:
    """Return the width of each part of the embedding of a model, without storage where it can."""
    from tfclip.model import TFCLIP  # which imports this module

    import_library(config)
    with torch.random.fork_rng(devices=[]):
        with contextlib.suppress(RuntimeError), torch.device("meta"):
            return TFCLIP(config).part_widths
        return TFCLIP(config).part_widths  # some timm towers need values while they are built


class _BuildError(ConfigError):
    """The libraries that build a tower refused to."""


@contextlib.contextmanager
def _building(source: str) -> Iterator[None]:
    """Turn what libraries say of absurd sizes into a sentence about the configuration."""
    try:
        yield
    except TFCLIPError:
        raise
    except Exception as error:  # each of timm's towers stumbles in its own way
        raise _BuildError(
            f"{source}: no model can be built of its configuration: {one_line(error)}"
        ) from error


class _Bounded(TorchFunctionMode):
    """Refuses to make tensors that a model with so few weights has no use for.

    Args:
        most: Numbers that may be made from nothing, in all.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FACTORIES:
            sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            sizes = (kwargs or {}).get("size", sizes)
            self._left -= math.prod(size for size in sizes if isinstance(size, int))
            if self._left < 0:
                raise MemoryError("it asks for far more memory than its weights take")
        return func(*args, **(kwargs or {}))
