"""A stand-in for CLIP's pre-training, on drawn people, for models too small to have any.

TF-CLIP starts from an image tower that was pre-trained on pictures and texts. There is no such
tower of 1 million parameters, so this trains one on drawn people who never occur again: pictures
of one person, from different cameras, are pulled together, and others apart (Khosla et al., 2020).
Where people wear badges, the badge's colour is part of what a picture shows, so that the tower
learns to see it.

    python examples/pretrain.py --out runs/tower
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.data import SyntheticTracklets, Tracklet
from tfclip.data.synthetic import Cue
from tfclip.data.transforms import ClipTransform, ColourJitter, RandomErasing
from tfclip.preprocess import Preprocess

TINY = TFCLIPConfig(
    backbone_options={"width": 128, "layers": 4, "heads": 4, "patch_size": 8, "output_dim": 96},
    frame_size=(64, 32),
    temporal_heads=4,
    temporal_detach=False,  # with so few steps, the tower has to help the temporal feature
)
WORLD = 2**31  # a seed apart: people, places and walks that nothing else is drawn from
GROUP = 48  # people who share two cameras: the background cannot tell who they are
FRAMES = 4  # of each person in each camera
TEMPERATURE = 0.1


class Pictures(NamedTuple):
    """Drawn frames of groups of people; a group walks past two cameras that no other one sees."""

    frames: Tensor  # (groups, people, 2 cameras, T, 3, H, W) uint8
    labels: Tensor  # (groups, people, 2 cameras, T): equal where look and badge are


def draw_pictures(config: TFCLIPConfig, groups: int, cue: Cue, seed: int) -> Pictures:
    """Draw groups of people, each person in two cameras."""
    drawn = SyntheticTracklets(
        num_frames=FRAMES, frame_size=config.frame_size, cue=cue, seed=WORLD + seed
    )
    shape = (groups, GROUP, 2, FRAMES)
    frames = torch.empty(*shape, 3, *config.frame_size, dtype=torch.uint8)
    labels = torch.empty(shape, dtype=torch.long)
    for group in tqdm(range(groups), desc="drawing people", unit="group"):
        for i, view in itertools.product(range(GROUP), range(2)):
            person = group * GROUP + i
            tracklet = drawn.draw(person, 2 * group + view, 0)
            frames[group, i, view] = torch.from_numpy(tracklet.frames).permute(0, 3, 1, 2)
            look = person if cue == "appearance" else person // 2
            badge = 0 if tracklet.badge is None else torch.from_numpy(tracklet.badge)
            labels[group, i, view] = 8 * look + badge
    return Pictures(frames, labels)


def draw_tracklets(seed: int, **settings: Any) -> tuple[list[Tracklet], list[Tracklet]]:
    """Draw the tracklets to train on and those to test on: of other people, in other cameras."""
    drawn = {"num_cameras": 12, "tracklets_per_camera": 1, "frame_size": TINY.frame_size}
    drawn |= {"seed": seed, **settings}
    people = SyntheticTracklets(**{"num_identities": 320, **drawn})
    unseen = {"first_identity": people.num_identities, "first_camera": people.num_cameras}
    others = SyntheticTracklets(**{"num_identities": 60, **drawn, **unseen, "num_cameras": 4})
    # Drawn now, so that no epoch has to do it again.
    return list(tqdm(people, unit="tracklet")), list(tqdm(others, unit="tracklet"))


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Return the supervised contrastive loss of features, (M, E), with labels, (M,)."""
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    log_share = logits.log_softmax(1).masked_fill(~positive, 0)
    count = positive.sum(1)
    return -(log_share.sum(1)[count > 0] / count[count > 0]).mean()


def pretrain(
    config: TFCLIPConfig,
    *,
    groups: int = 200,
    steps: int = 3000,
    groups_at_once: int = 1,
    frames_of_each: int = 2,
    learning_rate: float = 1.5e-3,
    cue: Cue = "appearance",
    seed: int = 0,
    device: str = "cpu",
) -> TFCLIP:
    """Return a model whose image tower knows drawn people; its temporal head is random."""
    torch.manual_seed(seed)
    model = TFCLIP(config).to(device).train()
    tower = model.backbone
    pictures = draw_pictures(config, groups, cue, seed)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    transform = ClipTransform(erasing=RandomErasing(), jitter=ColourJitter())
    preprocess = Preprocess(config)
    random = torch.Generator().manual_seed(seed)
    progress = tqdm(range(steps), desc="pre-training", unit="step")
    for step in progress:
        chosen = torch.randperm(groups, generator=random)[:groups_at_once]
        times = torch.randperm(FRAMES, generator=random)[:frames_of_each]
        clips = pictures.frames[chosen][:, :, :, times].flatten(0, 2)
        frames = torch.cat([transform(clip, random) for clip in clips]).to(device)
        features = tower.project_class(tower(preprocess.normalize(frames)))
        labels = pictures.labels[chosen][:, :, :, times].flatten()
        loss = contrastive_loss(features, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    provenance = {"tower": f"examples/pretrain.py, {groups * GROUP} drawn people, {steps} steps"}
    model.config = config.replace(provenance=provenance)
    return model.eval()


def main() -> None:
    """Pre-train the tower of the bundled model and save it as a model of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write the model to")
    parser.add_argument("--groups", type=int, default=200, help="of 48 people each")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--cue", default="appearance", help="how drawn people differ")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args())
    out = options.pop("out")
    pretrain(TINY, **options).save_pretrained(out)


if __name__ == "__main__":
    main()
