"""What test_distributed.py runs in one process or, by torchrun, in several; results go to a file.

python tests/distributed_worker.py MODE OUT
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader

from tfclip import TFCLIP, TFCLIPConfig, TFCLIPObjective
from tfclip.data import SyntheticTracklets
from tfclip.data.clips import ClipDataset
from tfclip.data.samplers import IdentitySampler
from tfclip.distributed import (
    gather_dealt,
    gather_with_gradient,
    join_processes,
    place,
    share_gradients,
    whole_weights,
)
from tfclip.memory_building import build_memory
from tfclip.training import Recipe, TrainingStep

CONFIG = TFCLIPConfig(
    backbone_options={"width": 32, "layers": 1, "heads": 2, "patch_size": 8, "output_dim": 16},
    frame_size=(32, 16),
    temporal_heads=2,
    clip_length=4,
    num_cameras=2,
)
OBJECTIVES = {
    "ddp": {},
    "fsdp": {},
    "momentum": {"memory_momentum": 0.5, "scope": "batch", "loss": {"video_to_memory": 1.0}},
}


def train(mode: str) -> dict:
    """Take three steps in float64, where Adam does not turn rounding into steps."""
    rank, size = place()
    torch.manual_seed(0)
    tracklets = list(SyntheticTracklets(4, 2, 2, num_frames=5, frame_size=(32, 16)))
    model = TFCLIP(CONFIG)
    clips = ClipDataset(tracklets, CONFIG)
    memory = build_memory(model, tracklets, clips.identities)
    objective = TFCLIPObjective(CONFIG, 4, memory, dropout=0.0, **OBJECTIVES[mode]).double()
    step = TrainingStep(model.double(), objective)
    shared = share_gradients(step, sharded=mode == "fsdp", partial=mode == "momentum")
    optimizer = Recipe(learning_rate=1e-3).optimizer(model, objective)
    sampler = IdentitySampler(clips.identities, 4, 2, numbered=True, rank=rank, world_size=size)
    losses = []
    shared.train()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        clips.set_epoch(epoch)
        for batch in DataLoader(clips, batch_sampler=sampler):
            frames = clips.preprocess.normalize(batch.frames, dtype=torch.float64)
            terms = shared(frames, batch.camera, batch.identity)
            terms["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append({name: float(value) for name, value in terms.items()})
    return {"losses": losses, "memory": memory(), "weights": whole_weights(shared)}


def gather() -> dict:
    """Gather uneven shares, and rows whose gradient differs from process to process."""
    rank, size = place()
    dealt = [gather_dealt(torch.arange(n)[rank::size, None], n) for n in (0, 1, 2, 7)]
    rows = torch.full((2, 3), float(rank), requires_grad=True)
    everything = gather_with_gradient(rows)
    weights = torch.arange(everything.numel()).view_as(everything) * 10.0**rank
    (everything * weights).sum().backward()
    return {"dealt": dealt, "gathered": everything.detach(), "gradient": rows.grad}


def main(mode: str, out: str) -> None:
    """Run one mode and let every process write what it got."""
    torch.set_num_threads(1)
    join_processes("cpu")
    result = gather() if mode == "gather" else train(mode)
    torch.save(result, f"{out}.{place()[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
