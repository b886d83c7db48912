"""Products of 8-bit numbers in inference: dynamic quantisation of linear layers on x86 processors.

Weights are rounded to 8 bits with a scale for each output channel, and the rows that go into a
layer - one for each token - with a scale for each row, found when they come. A row's scale is its
own, so that an embedding still depends on its own frames alone. Processors with VNNI multiply such
numbers about twice as fast as bfloat16 and add them up in 32 bits.

What lies around a product - scales found, numbers rounded, results scaled back, the bias, the
activation - is memory traffic that would eat the gain, were it done in one pass for each operation.
``torch.compile`` makes one pass of it; it needs a C++ compiler. Nothing else is compiled. Where
there is no compiler the result is the same, and slower than bfloat16.

Used by ``tfclip.speed.linear`` where ``multiplying`` says so. Accuracy and speed are in
docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tfclip.tensors import MadeOfWeights

_logger = logging.getLogger(__name__)

# Rows are unsigned with 128 for zero, as VNNI wants its first factor.
_ZERO = 128
_LARGEST = 127

# Narrower products are so few that rounding them is not worth it.
_LEAST_WIDTH = 64

_MULTIPLYING: ContextVar[bool] = ContextVar("multiplying", default=False)


class Rounded(NamedTuple):
    """A weight in 8 bits, ``(D', D)``, laid out for oneDNN."""

    packed: Tensor
    scales: Tensor  # (D',), float32
    zeros: Tensor  # (D',), all 0


def multiplying(enabled: bool) -> AbstractContextManager[None]:
    """Let linear layers multiply numbers of 8 bits in this block, in this thread.

    Args:
        enabled: Whether to; if not, nothing changes.

    Example:
        >>> from tfclip import speed
        >>> x, weight = torch.ones(2, 64), torch.full((64, 64), 0.5)
        >>> with torch.inference_mode(), multiplying(True):
        ...     speed.linear(x, weight, None)[0, 0].item()
        32.0
    """
    return _turned_on() if enabled else contextlib.nullcontext()


def takes(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a product in inference is to be one of 8-bit numbers.

    Args:
        x: Rows, ``(..., D)``.
        weight: ``(D', D)``.
    """
    return (
        _MULTIPLYING.get()
        and x.device.type == "cpu"
        and min(weight.shape) >= _LEAST_WIDTH
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and type(weight) in (Tensor, nn.Parameter)  # a quantised one multiplies in its own way
        and why_not() is None  # the model may have been pickled on another machine
    )


def why_not() -> str | None:
    """Return why this machine does not multiply 8-bit numbers, or None if it does.

    torch's operators for it are not promised to stay; they are tried, once.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the processor must be of the x86 family, got {platform.machine()}"
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return "the processor must have VNNI instructions"
    if not _works():
        return f"torch {torch.__version__} has no product of 8-bit numbers that this library knows"
    return None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, quick_gelu: bool = False) -> Tensor:
    """Compute ``x @ weight.T + bias`` from numbers of 8 bits, summed up in 32.

    Args:
        x: Rows, ``(..., D)``, float32 or bfloat16.
        weight: ``(D', D)``, of the same type.
        bias: ``(D',)`` or None.
        quick_gelu: Apply ``y * sigmoid(1.702 y)`` to the result.

    Returns:
        ``(..., D')``, of the type of ``x``.
    """
    rounded = _rounded(weight)
    rows, scales = _one_pass(round_rows)(x.reshape(-1, x.shape[-1]))
    product = multiply(rows, rounded, x.dtype)
    finish = _one_pass(_finish_quick_gelu if quick_gelu else _finish)
    if bias is None:
        bias = rounded.scales.new_zeros(())
    return finish(product, scales, bias).view(*x.shape[:-1], len(weight))


@contextlib.contextmanager
def _turned_on() -> Iterator[None]:
    token = _MULTIPLYING.set(True)
    try:
        yield
    finally:
        _MULTIPLYING.reset(token)


def multiply(rows: Tensor, weight: Rounded, dtype: torch.dtype) -> Tensor:
    """Multiply rounded rows, still without their scales, by a rounded weight."""
    return torch.ops.onednn.qlinear_pointwise(
        *(rows, 1.0, _ZERO),
        *(weight.packed, weight.scales, weight.zeros),
        *(None, 1.0, 0, dtype, "none", [], ""),
    )


def round_weight(weight: Tensor) -> Rounded:
    """Round a weight, (D', D), with a scale for each of its rows, and lay it out."""
    values = weight.detach().float()
    scales = values.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
    whole = (values / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(whole, None)
    return Rounded(packed, scales, torch.zeros(len(scales), dtype=torch.int64))


_rounded: MadeOfWeights[Rounded] = MadeOfWeights(round_weight)


# --- passes


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of x, (M, D), to unsigned 8 bits; also return what one step is, (M, 1)."""
    scales = x.float().abs().amax(1, keepdim=True).clamp_min(1e-30) / _LARGEST
    return (x.float() / scales + (_ZERO + 0.5)).to(torch.uint8), scales


def _finish(product: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
    return (product * scales + bias).to(product.dtype)


def _finish_quick_gelu(product: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
    y = product * scales + bias
    return (y * torch.sigmoid(1.702 * y)).to(product.dtype)


@functools.cache
def _one_pass(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of rows for any number of them, if there is a compiler."""
    compiled = torch.compile(function, dynamic=True)
    sample = (torch.ones(3, 4), torch.ones(3, 1), torch.ones(4))
    try:
        compiled(*(sample[:1] if function is round_rows else sample))
    except Exception as error:  # of dynamo, inductor or the compiler: there are many kinds
        _logger.warning(
            "torch.compile does not work here, so products of 8-bit numbers will be slower than "
            "bfloat16: %s",
            str(error).partition("\n")[0],
        )
        return function
    return compiled


@functools.cache
def _works() -> bool:
    """Tell whether torch's operators exist and mean what they mean here."""
    with torch.inference_mode():
        x = torch.arange(-64.0, 64.0).view(2, 64)
        weight = torch.arange(64.0 * 64).remainder(7).view(64, 64) - 3
        try:
            rows, scales = round_rows(x)
            found = multiply(rows, round_weight(weight), torch.float32) * scales
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(found, x @ weight.T, rtol=0.02, atol=5.0)
