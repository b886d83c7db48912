"""Training on several processes: what they must tell each other, beside gradients.

The hardest examples of a triplet loss, the statistics of a batch norm and the rows of a momentum
memory belong to the whole batch, and not to the share of it that one process has. So features are
gathered with their gradient, and every process computes the losses of all. Averaged over processes,
as data-parallel training does, the gradients are then those of one process with the whole batch.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tfclip.errors import MissingExtraError


def place() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) outside a group.

    Example:
        >>> place()
        (0, 1)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all processes one after the other, and send gradients back to each.

    The gradient of a row is the sum of what all processes ask of it. Outside a process group the
    rows are returned as they are.

    Args:
        rows: ``(B, ...)``, of the same shape and type in every process.

    Returns:
        ``(P * B, ...)`` for P processes.

    Example:
        >>> gather_with_gradient(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    if place()[1] == 1:
        return rows
    return _Gather.apply(rows)  # type: ignore[return-value]


def gather_dealt(rows: Tensor, total: int) -> Tensor:
    """Put together what was dealt out like cards: process r computed the rows r, r + P, ...

    Args:
        rows: The rows of this process, in order, ``(ceil((total - r) / P), ...)``; no gradient
            goes through them.
        total: Rows of all processes.

    Returns:
        ``(total, ...)``, the same in every process.

    Raises:
        ValueError: The number of rows is not this process's share.

    Example:
        >>> gather_dealt(torch.tensor([3, 4, 5]), total=3)
        tensor([3, 4, 5])
    """
    rank, size = place()
    share = len(range(rank, total, size))
    if len(rows) != share:
        raise ValueError(f"rows must be {share} of {total} in process {rank}, got {len(rows)}")
    if size == 1 or total == 0:
        return rows
    most = -(-total // size)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[:share] = rows.detach()
    hands = [torch.empty_like(padded) for _ in range(size)]
    distributed.all_gather(hands, padded)
    return torch.stack(hands, dim=1).flatten(0, 1)[:total]


def from_first_process(value: Any) -> Any:
    """Return in every process what process 0 has."""
    if place()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def join_processes(device: str | torch.device) -> torch.device:
    """Join the processes that ``torchrun`` started, if any; Accelerate finds out what there is.

    Args:
        device: ``"cpu"``, or a kind of accelerator, of which each process takes its own.

    Returns:
        The device of this process: the one that was given, where it is alone.

    Raises:
        MissingExtraError: There are several processes and Accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(device)
    return _accelerator(cpu=torch.device(device).type == "cpu").device


def share_gradients(step: nn.Module, *, sharded: bool = False, partial: bool = False) -> nn.Module:
    """Average the gradients of a training step over the processes; alone, it stays as it is.

    Make the optimizer afterwards. The step must return tensors, or a dict or tuple of them.

    Args:
        step: Forward gives the losses, as ``TrainingStep`` does.
        sharded: Each process keeps a part of the weights, of their gradients and of what the
            optimizer keeps of them (FSDP2), and not all (DDP).
        partial: Some weights may get no gradient.

    Returns:
        What to call in place of ``step``; its modules are the same objects.
    """
    if place()[1] == 1:
        return step
    if sharded:  # by torch itself: Accelerate has FSDP2 on GPUs only, where this is the same call
        from torch.distributed.fsdp import fully_shard

        fully_shard(step)
        return step
    from accelerate import DistributedDataParallelKwargs

    # Buffers are equal without being sent: batch norms and memory see the whole batch everywhere.
    settings = DistributedDataParallelKwargs(
        broadcast_buffers=False, find_unused_parameters=partial
    )
    cpu = next(step.parameters()).device.type == "cpu"
    return _accelerator(cpu=cpu, kwargs_handlers=[settings]).prepare_model(step)


def whole_state(step: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    """Return the states of both by parameter name: the same for any number of processes.

    All processes must call it.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict

    return get_state_dict(step, optimizer, options=_whole())  # type: ignore[return-value]


def whole_weights(step: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, without it, whole in every process."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    weights: dict[str, Any] = get_model_state_dict(step, options=_whole())
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def load_whole(
    step: nn.Module, optimizer: torch.optim.Optimizer, weights: dict, moments: dict
) -> None:
    """Put back what ``whole_state`` gave, into any number of processes."""
    from torch.distributed.checkpoint.state_dict import set_state_dict

    set_state_dict(
        step, optimizer, model_state_dict=weights, optim_state_dict=moments, options=_whole()
    )


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True)


def _accelerator(**arguments: Any) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingExtraError(
            "several processes need Accelerate; install it with: pip install 'tfclip[train]'"
        ) from None
    return Accelerator(**arguments)


class _Gather(torch.autograd.Function):
    """``all_gather`` with the gradient that PyTorch's own lacks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(place()[1])]
        distributed.all_gather(parts, rows.contiguous())
        ctx.size = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        start = place()[0] * ctx.size
        return total[start : start + ctx.size]
