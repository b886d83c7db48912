"""The arithmetic of inference: the same numbers in fewer passes, by torch's faster library.

Nearly all of an encoder's time is products of matrices; the rest should not be seen beside them.
Everything here is plain torch, changes no weight, and steps aside - ``is_inference`` is False -
when gradients are recorded, under autocast, when the model is compiled or exported, and under the
transforms of ``torch.func``. Figures
stand in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfclip import int8
from tfclip.tensors import MadeOfWeights

# A buffer of this size is still in the caches when it is read again, and small enough for the
# allocator to hand it out again and again: beyond 32 MiB glibc asks the system for fresh pages each
# time, and to be given them takes longer than most of what is done with them.
_PIECE_BYTES = 16 * 2**20

# Narrower products are over before it matters which library does them.
_LEAST_WIDTH = 256

# Up to so many keys a matrix of scores is worth having; a clip can have thousands of frames.
_FEW_TOKENS = 512


def is_inference(x: Tensor) -> bool:
    """Tell whether ``x`` may be computed the short way: in place, and by what has no gradient."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_compiling()  # or exporting
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()  # vmap, say, whose tensors hold no numbers
    )


def rows_at_once(width: int, dtype: torch.dtype) -> int:
    """Return how many rows of a buffer stay in the caches of a processor.

    Args:
        width: Numbers in each row of the widest buffer.
        dtype: Their type.

    Example:
        >>> rows_at_once(3072, torch.float32)
        1365
    """
    return max(1, _PIECE_BYTES // (width * dtype.itemsize))


def frames_at_once(x: Tensor, width: int, num_tokens: int) -> int:
    """Return how many of the frames ``x``, ``(M, ...)``, to take at once in inference.

    Args:
        x: The frames; on any device but a processor it is all of them.
        width: Numbers that the widest layer gives for each token.
        num_tokens: Tokens of a frame.
    """
    if x.device.type != "cpu":
        return len(x)
    return max(1, rows_at_once(width, x.dtype) // num_tokens)


def in_pieces(run: Callable[..., Tensor], size: int, *tensors: Tensor | None) -> Tensor:
    """Run a function that treats rows independently on a few rows at a time.

    Args:
        run: Takes as many tensors as are given, and returns one with as many rows.
        size: Rows at a time.
        tensors: With the same number of rows each, or None.

    Returns:
        What ``run`` returns for all rows.

    Example:
        >>> in_pieces(lambda x, y: 2 * x, 2, torch.ones(3), None)
        tensor([2., 2., 2.])
    """
    number = max(len(tensor) for tensor in tensors if tensor is not None)
    if number <= size:
        return run(*tensors)
    # Equal pieces: a last one of a single row would cost more than its share.
    size = -(-number // -(-number // size))
    pieces = [[None] if x is None else x.split(size) for x in tensors]
    return torch.cat([run(*piece) for piece in zip_longest(*pieces)])


def in_padded_pieces(run: Callable[..., Tensor], size: int, *tensors: Tensor | None) -> Tensor:
    """Do the same as ``in_pieces``, in pieces that all have the same size: the last is filled up.

    A compiled function, and a CUDA graph above all, is made for one shape. What it returns is
    copied at once, since the next run of a graph writes to the same memory.

    Example:
        >>> in_padded_pieces(lambda x: 2 * x, 2, torch.ones(3))
        tensor([2., 2., 2.])
    """
    number = max(len(tensor) for tensor in tensors if tensor is not None)
    results = []
    for start in range(0, number, size):
        pieces = [None if x is None else x[start : start + size] for x in tensors]
        missing = size - min(size, number - start)
        padded = [
            piece
            if piece is None or not missing
            else torch.cat([piece, piece[:1].expand(missing, *piece.shape[1:])])
            for piece in pieces
        ]
        results.append(run(*padded)[: size - missing].clone())
    return torch.cat(results)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, followed_by_quick_gelu: bool = False
) -> Tensor:
    """Compute ``x @ weight.T + bias`` in inference.

    From numbers of 8 bits where ``tfclip.int8.multiplying`` says so. Else, on a processor, by
    oneDNN where that is the faster way:

    - float32: torch takes MKL, which knows Intel's processors; on an AMD EPYC with AVX-512 oneDNN
      is twice as fast.
    - bfloat16: torch takes oneDNN and lays out the weight anew in each call; here that is done
      once, and the result kept beside the weight for as long as that lives and does not change.

    Args:
        x: Rows, ``(..., D)``.
        weight: ``(D', D)``.
        bias: ``(D',)`` or None.
        followed_by_quick_gelu: Apply ``quick_gelu`` to the result.

    Returns:
        ``(..., D')``.
    """
    if is_inference(x) and int8.takes(x, weight):
        return int8.linear(x, weight, bias, quick_gelu=followed_by_quick_gelu)
    if _takes_onednn(x, weight):
        if weight.dtype == torch.bfloat16:
            weight = _packed(weight)
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        y = F.linear(x, weight, bias)
    return quick_gelu(y) if followed_by_quick_gelu else y


def run(layer: nn.Module, x: Tensor, *, followed_by_quick_gelu: bool = False) -> Tensor:
    """Run a layer by ``linear``, or by its own forward if somebody has replaced or watches it."""
    if type(layer) is nn.Linear and not is_watched(layer):
        return linear(x, layer.weight, layer.bias, followed_by_quick_gelu=followed_by_quick_gelu)
    return quick_gelu(layer(x)) if followed_by_quick_gelu else layer(x)


def is_watched(module: nn.Module) -> bool:
    """Tell whether a module, or one in it, has forward hooks or a replaced forward."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
        for part in module.modules()
    )


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        query: ``(M, heads, N, d)``.
        key: ``(M, heads, N', d)``.
        value: ``(M, heads, N', d)``.
        bias: Added to the scores, broadcastable to ``(M, heads, N, N')``, or None.

    Returns:
        ``(M, heads, N, d)``.
    """
    if not _takes_plain_products(query, key):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    shape = query.shape
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    empty = query.new_empty(1)  # is not read
    scores = torch.baddbmm(empty, query, key.transpose(1, 2), beta=0, alpha=shape[-1] ** -0.5)
    if bias is not None:
        scores = scores.unflatten(0, shape[:2]).add_(bias).flatten(0, 1)
    return torch.bmm(torch.softmax(scores, dim=-1, out=scores), value).unflatten(0, shape[:2])


def quick_gelu(x: Tensor) -> Tensor:
    """Compute ``x * sigmoid(1.702 x)``, in inference in the memory of ``x`` itself."""
    if not is_inference(x):
        return x * torch.sigmoid(1.702 * x)
    return x.mul_((1.702 * x).sigmoid_())


def add(x: Tensor, y: Tensor) -> Tensor:
    """Compute ``x + y``, in inference in the memory of ``x`` itself."""
    return x.add_(y) if is_inference(x) else x + y


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether oneDNN is there, may be used, and is the faster way for this product."""
    # First whether it is inference: what follows cannot be traced by torch.compile.
    if not (is_inference(x) and _is_x86(x) and torch.backends.mkldnn.enabled):
        return False
    if weight.dtype != x.dtype or min(weight.shape) < _LEAST_WIDTH:
        return False
    if type(weight) not in (Tensor, nn.Parameter):  # a quantised one multiplies in its own way
        return False
    if x.dtype == torch.bfloat16:
        return not weight.is_inference() and _has_onednn(x.dtype)  # which has no version to go by
    return x.dtype == torch.float32 and _is_unknown_to_mkl() and _has_onednn(x.dtype)


def _takes_plain_products(query: Tensor, key: Tensor) -> bool:
    """Tell whether attention is faster without torch's fused kernel.

    Where a processor has no matrix units (AMX), that kernel multiplies bfloat16 slower than
    float32. At the few tokens of a frame, two products and a softmax in place take a third of it.
    """
    return (
        is_inference(query)  # first: a trace must not depend on the number of tokens
        and query.dtype == torch.bfloat16
        and key.shape[-2] <= _FEW_TOKENS
        and _is_x86(query)
        and not _has_amx()
    )


def _is_x86(x: Tensor) -> bool:
    return x.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")


@functools.cache
def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _pack(weight: Tensor) -> Tensor:
    """Lay out a weight as oneDNN likes it."""
    rows = rows_at_once(4 * weight.shape[1], weight.dtype)
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


_packed: MadeOfWeights[Tensor] = MadeOfWeights(_pack)


@functools.cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Tell whether torch has oneDNN with the operators that its compiler uses, and they work.

    They are torch's own, but not promised: if one has gone or means something else, torch's usual
    product is taken.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode():
        x = torch.arange(-32.0, 32.0).to(dtype).view(4, 16) / 8
        weight, bias = x.flip(0).contiguous(), torch.ones(4, dtype=dtype)
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, 4)
            y = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(y.float(), F.linear(x, weight, bias).float(), rtol=0.02, atol=0.02)


@functools.cache
def _is_unknown_to_mkl() -> bool:
    """Tell whether this is a processor that MKL does not know; it goes by the maker's name."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        maker = platform.processor()
    return "AuthenticAMD" in maker
