"""The paper's ablation on drawn people, over several seeds, and controls that must stay at chance.

    python examples/ablation.py --out runs/ablation.json

Two people share each look and differ only in how the badge on their chest behaves: one wears one
colour all through a tracklet, the other a colour drawn for each frame. A single frame cannot tell
who of the two it shows. Test people and test cameras are new. Each query is searched in the other
camera, where its person and the other one of the look walk once each: knowing the look alone gives
a rank-1 of 50 %. Each finished run is kept in the file: the same command goes on after an
interruption, and prints the tables once more when all is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pretrain import pretrain
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from train import train_epoch

from tfclip import TFCLIP, TFCLIPConfig, TFCLIPObjective
from tfclip.data import SyntheticTracklets, Tracklet
from tfclip.data.clips import ClipDataset
from tfclip.data.samplers import IdentitySampler
from tfclip.data.synthetic import Cue
from tfclip.data.transforms import ClipTransform
from tfclip.files import replace_when_done
from tfclip.functional import RankingResult, evaluate_ranking, squared_euclidean_distance
from tfclip.memory_building import build_memory
from tfclip.objective import LOSS_WEIGHTS
from tfclip.training import Recipe, TrainingStep

MODEL = TFCLIPConfig(
    backbone_options={"width": 64, "layers": 3, "heads": 4, "patch_size": 8, "output_dim": 48},
    frame_size=(32, 16),
    temporal_heads=4,
)
AVERAGE: dict[str, Any] = {"temporal_head": "average", "descriptor": ("appearance", "projected")}
CLIP_LOSSES = ("identity_appearance", "identity_projected")
CLIP_LOSSES += ("triplet_appearance", "triplet_projected")
AVERAGE_LOSSES = {name: LOSS_WEIGHTS["released"][name] for name in CLIP_LOSSES}
WITH_MEMORY = {"video_to_memory": 1.0, **AVERAGE_LOSSES}
PEOPLE, CAMERAS = 48, 4  # in training, each twice in each camera
TEST_PEOPLE, TEST_CAMERAS = 100, 2  # once in each: one right and one wrong person of the look
BATCH = {"identities_per_batch": 8, "tracklets_per_identity": 2}


@dataclass(frozen=True)
class Row:
    """One row of a table: what differs from the full method on people with badges."""

    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    cue: Cue = "badge"
    num_frames: int = 16
    shuffled: bool = False  # train on labels that mean nothing


NO_PROMPT = {"prompt": "none"}
POSITION = {"temporal_position": True}
JOINT = {"temporal_detach": False}
TABLES: dict[str, dict[str, Row]] = {
    "The parts (the supplement's Tables 3, 4 and 7)": {
        "average pooling": Row(AVERAGE, {**NO_PROMPT, "loss": AVERAGE_LOSSES}),
        "+ CLIP-Memory": Row(AVERAGE, {**NO_PROMPT, "loss": WITH_MEMORY}),
        "+ CLIP-Memory + SSP": Row(AVERAGE, {"loss": WITH_MEMORY}),
        "+ CLIP-Memory + TMC": Row({"temporal_head": "tmc"}, NO_PROMPT),
        "+ CLIP-Memory + TMC + MD": Row({}, NO_PROMPT),
        "all": Row(),
        "all, joint gradient": Row(JOINT),
    },
    "The temporal heads (the supplement's Table 5)": {
        "TAP": Row(AVERAGE, {**NO_PROMPT, "loss": WITH_MEMORY}),
        "Conv1D": Row({"temporal_head": "convolution"}, NO_PROMPT),
        "Transf_cls": Row({"temporal_head": "transformer_token"}, NO_PROMPT),
        "Transf": Row({"temporal_head": "transformer"}, NO_PROMPT),
        "TMD": Row({}, NO_PROMPT),
    },
    "Controls": {
        "nothing to tell apart: average": Row(AVERAGE, {"loss": WITH_MEMORY}, cue="none"),
        "nothing to tell apart: all": Row(cue="none"),
        "order only: all": Row(JOINT, cue="order", num_frames=8),
        "order only: all, with frame positions": Row(JOINT | POSITION, cue="order", num_frames=8),
        "shuffled labels: all": Row(shuffled=True),
        "clips of one frame: all": Row({"clip_length": 1}),
    },
}


def main() -> None:
    """Do what is not done yet, then print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a .json file for the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=32, help="24 steps each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    names = list(dict.fromkeys(name for table in TABLES.values() for name in table))
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW")
    options = parser.parse_args()
    tables = {
        title: {name: row for name, row in table.items() if name in options.rows}
        for title, table in TABLES.items()
    }
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in range(options.seeds):
        chosen = [row for table in tables.values() for row in table.values()]
        rows = {key(row, seed, options): row for row in chosen}  # one in two tables is run once
        rows = {name: row for name, row in rows.items() if name not in results}
        if not rows:
            continue
        tower = pretrain(MODEL, cue="badge", groups=40, steps=600, seed=seed, device=options.device)
        for name, row in tqdm(rows.items(), desc=f"seed {seed}", unit="run"):
            start = time.monotonic()
            results[name] = run(row, tower, seed, options)
            results[name]["seconds"] = round(time.monotonic() - start, 1)
            with replace_when_done(options.out) as temporary:
                temporary.write_text(json.dumps(results, indent=1))
    for title, table in tables.items():
        if table:
            print_table(title, table, results, options)


def key(row: Row, seed: int, options: argparse.Namespace) -> str:
    """Return the text under which a run is kept: all that it depends on."""
    return json.dumps([dataclasses.asdict(row), seed, options.epochs])


def run(row: Row, tower: TFCLIP, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one model and search with it."""
    torch.manual_seed(seed)
    train_set, test_set = draw(row.cue, row.num_frames, seed)
    model = TFCLIP(tower.config.replace(**row.model)).to(options.device)
    model.backbone.load_state_dict(tower.backbone.state_dict())
    # Flips only: erasing hides badges behind patches of one colour, which is what badges are.
    clips = ClipDataset(train_set, model.config, ClipTransform(), seed=seed)
    if row.shuffled:
        order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed))
        clips.identities = clips.identities[order]
    memory = build_memory(model, train_set, clips.identities)
    objective = TFCLIPObjective(model.config, PEOPLE, memory, **row.objective).to(options.device)
    recipe = Recipe(
        **BATCH,
        epochs=options.epochs,
        learning_rate=5e-6,  # the tower knows people and badges already and changes little, ...
        new_module_multiplier=400.0,  # ... what relates the frames starts from nothing
        temporal_classifier_multiplier=400.0,
        warmup_epochs=3,
        milestones=(int(0.7 * options.epochs), int(0.9 * options.epochs)),
    )
    optimizer = recipe.optimizer(model, objective)
    schedule = recipe.schedule(optimizer)
    average = torch.optim.swa_utils.AveragedModel(model)
    step = TrainingStep(model, objective)
    state = {"model": model, "step": step, "optimizer": optimizer, "average": average}
    sampler = IdentitySampler(clips.identities, *BATCH.values(), seed=seed, numbered=True)
    loader = DataLoader(clips, batch_sampler=sampler)
    for epoch in range(recipe.epochs):
        sampler.set_epoch(epoch)
        clips.set_epoch(epoch)
        train_epoch(SETTINGS, loader, len(sampler), state, tqdm(disable=True))
        schedule.step()
    return search(model.eval(), test_set)


SETTINGS = argparse.Namespace(bf16=False, accumulate=1, ema=0.0)  # of train_epoch


@functools.lru_cache(maxsize=4)
def draw(cue: Cue, num_frames: int, seed: int) -> tuple[list[Tracklet], list[Tracklet]]:
    """Return training and test tracklets, of other people in other cameras of one world."""
    world: dict[str, Any] = {"frame_size": MODEL.frame_size, "cue": cue, "seed": seed}
    world["num_frames"] = num_frames  # 8 make one clip, whose frames are then consecutive
    train = SyntheticTracklets(PEOPLE, CAMERAS, **world)
    unseen: dict[str, Any] = {"first_identity": PEOPLE, "first_camera": CAMERAS}
    test = SyntheticTracklets(TEST_PEOPLE, TEST_CAMERAS, 1, **world, **unseen)
    return list(train), list(test)


def search(model: TFCLIP, tracklets: list[Tracklet]) -> dict[str, float]:
    """Search every tracklet in the other cameras: for the person, and for the look."""
    parts = model.encode_sequences([tracklet.open() for tracklet in tracklets], normalize=False)
    people = torch.tensor([int(tracklet.person or 0) for tracklet in tracklets])
    cameras = torch.tensor([tracklet.camera or 0 for tracklet in tracklets])

    def evaluate(embeddings: Tensor, labels: Tensor) -> RankingResult:
        unit = normalize(embeddings, dim=1)
        distance = squared_euclidean_distance(unit, unit)
        return evaluate_ranking(distance, labels, labels, cameras, cameras, exclude="camera")

    whole = evaluate(parts, people)
    last = model.part_widths[model.config.descriptor[-1]]
    return {
        "rank1": whole.rank(1),
        "mAP": whole.mAP,
        "last": evaluate(parts[:, -last:], people).rank(1),
        "look": evaluate(parts, people // 2).rank(1),
    }


def print_table(
    title: str, table: dict[str, Row], results: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print mean and standard deviation over the seeds, as Markdown."""
    print(f"\n{title}, {options.seeds} seeds\n")
    print("| row | rank-1 | mAP | rank-1 of the last part | rank-1 of the look | seconds a run |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in table.items():
        runs = [results[key(row, seed, options)] for seed in range(options.seeds)]
        cells = []
        for measure in ("rank1", "mAP", "last", "look"):
            values = [100 * run[measure] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        cells.append(f"{statistics.median(run['seconds'] for run in runs):.0f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
