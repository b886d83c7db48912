r"""Train TF-CLIP: from the memory of the training set to a model folder, readable top to bottom.

    python examples/train.py synthetic --preset tiny --init tiny --out runs/tiny
    python examples/train.py crops/train --test crops/test --layout "{person}/{camera}" \
        --cameras --bf16 --out runs/crops
    python examples/train.py mars --root /data/MARS --cameras --bf16 --out runs/mars
    torchrun --nproc-per-node 4 examples/train.py mars --root /data/MARS --cameras --out runs/mars

The first trains the bundled model, the others the paper's as the released code does. The same
command again goes on after the last epoch and ends, on a CPU, with the same weights, bit for bit.
With several processes the batch is shared among them, and the training is that of one process.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pretrain import TINY, draw_tracklets, pretrain
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from tfclip import TFCLIP, CLIPMemory, TFCLIPConfig, TFCLIPObjective
from tfclip.data import Split, Tracklet, load_dataset, read_folder, read_table
from tfclip.data.clips import ClipDataset
from tfclip.data.samplers import IdentitySampler
from tfclip.data.transforms import ClipTransform, ColourJitter, RandomErasing
from tfclip.distributed import (
    from_first_process,
    gather_dealt,
    join_processes,
    load_whole,
    place,
    share_gradients,
    whole_state,
    whole_weights,
)
from tfclip.files import replace_when_done
from tfclip.functional import RankingResult, evaluate_ranking, squared_euclidean_distance
from tfclip.memory_building import build_memory
from tfclip.training import PRESETS, Recipe, TrainingStep

SECTIONS = ("model", "objective", "recipe", "synthetic", "tower")  # the last: its pre-training
logger = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate and save."""
    options = parse(arguments)
    out, device = Path(options.out), join_processes(options.device)
    rank, size = place()
    logger.setLevel(logging.WARNING if rank else logging.INFO)
    torch.manual_seed(options.seed)
    recipe = Recipe(**{**PRESETS[options.preset], **options.settings["recipe"]})
    train_set, test_set, split = load_tracklets(options)

    # What is trained, on what, against which memory.
    checkpoint = load_checkpoint(out / "last.pt", options)
    log: list[dict[str, Any]] = checkpoint["log"] if checkpoint else []
    writer = open_tensorboard(out, len(log)) if options.tensorboard and rank == 0 else None
    model = build_model(options, train_set, checkpoint).to(device)
    if test_set:
        check_test(model, test_set, split)
    erasing = RandomErasing(legacy=options.legacy_erasing)
    transform = ClipTransform(erasing=erasing, jitter=ColourJitter() if options.jitter else None)
    clips = ClipDataset(train_set, model.config, transform, seed=options.seed)
    if checkpoint:
        memory = CLIPMemory(checkpoint["training"]["objective.memory.centroids"])
    else:
        cache = out / "memory.safetensors"
        memory = build_memory(model, train_set, clips.identities, cache=cache, progress=True)
    objective = TFCLIPObjective(
        model.config, len(clips.people), memory, **options.settings["objective"]
    ).to(device)
    model.backbone.set_gradient_checkpointing(options.gradient_checkpointing)

    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
    averaged = cast("TFCLIP", average.module)
    step = TrainingStep(model, objective)
    partial = "loss" in options.settings["objective"]  # a term left out leaves weights unused
    shared = share_gradients(step, sharded=options.shard, partial=partial)
    optimizer = recipe.optimizer(model, objective)
    schedule = recipe.schedule(optimizer)
    state = {"model": model, "step": shared, "optimizer": optimizer}
    state |= {"schedule": schedule, "average": average}
    if checkpoint:
        load_whole(shared, optimizer, checkpoint["training"], checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        average.load_state_dict(checkpoint["average"])
        torch.set_rng_state(checkpoint["random"])
        logger.info("going on after epoch %d of %d", len(log), recipe.epochs)

    sizes = recipe.identities_per_batch, recipe.tracklets_per_identity
    shares = {"rank": rank, "world_size": size}
    sampler = IdentitySampler(clips.identities, *sizes, seed=options.seed, numbered=True, **shares)
    loader = DataLoader(clips, batch_sampler=sampler, num_workers=options.workers)
    lengths = [len(sampler.draw(epoch)) for epoch in range(recipe.epochs)]
    done = sum(lengths[: len(log)])
    progress = tqdm(total=sum(lengths), initial=done, unit="step", disable=rank > 0)
    for epoch in range(len(log), recipe.epochs):
        sampler.set_epoch(epoch)
        clips.set_epoch(epoch)
        if size > 1:  # dropout must differ between processes, and not depend on interruptions
            numbers = np.random.SeedSequence([options.seed, epoch, rank])
            torch.manual_seed(int(numbers.generate_state(1)[0]))
        entry: dict[str, Any] = {"epoch": epoch + 1, "rate": schedule.get_last_lr()[0]}
        entry |= train_epoch(options, loader, lengths[epoch], state, progress)
        schedule.step()
        if not options.ema:
            averaged.load_state_dict(whole_weights(shared, "model."))
        if test_set and ((epoch + 1) % options.evaluate_every == 0 or epoch + 1 == recipe.epochs):
            result = evaluate(averaged, test_set, split)
            entry |= {"mAP": result.mAP, "rank1": result.rank(1), "rank5": result.rank(5)}
            entry["protocol"] = result.protocol
        log.append(entry)
        scores = [known["rank1"] + known["mAP"] for known in log if "mAP" in known]
        if options.select_on_test and "mAP" in entry and scores[-1] == max(scores):
            logger.warning("epoch %d is the best on the TEST set: its scores flatter", epoch + 1)
            save_model(averaged, out / "best-on-test", options)
        save_checkpoint(out, options, state, log)
        if rank == 0:
            report(entry, progress, writer)
    progress.close()
    save_model(averaged, out / "model", options)
    logger.info("saved %s", out / "model")


def train_epoch(
    options: argparse.Namespace,
    loader: DataLoader,
    num_batches: int,
    state: dict[str, Any],
    progress: tqdm,
) -> dict[str, float]:
    """Train for one epoch; return the mean of every loss."""
    step, optimizer, average = state["step"], state["optimizer"], state["average"]
    step.train()
    model, preprocess = state["model"], loader.dataset.preprocess  # type: ignore[attr-defined]
    device = next(average.parameters()).device
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(loader, start=1):
        frames = preprocess.normalize(batch.frames.to(device, non_blocking=True))
        cameras = batch.camera.to(device) if model.config.num_cameras else None
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            losses = step(frames, cameras, batch.identity.to(device))
        (losses["loss"] / options.accumulate).backward()
        if number % options.accumulate == 0 or number == num_batches:
            optimizer.step()
            optimizer.zero_grad()
            if options.ema:
                average.update_parameters(state["model"])
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        progress.update()
    means = {name: float(value) / num_batches for name, value in sums.items()}
    if not math.isfinite(means["loss"]):
        raise SystemExit(f"the loss is {means['loss']}; nothing of this epoch was saved")
    return means


def evaluate(model: TFCLIP, tracklets: list[Tracklet], split: Split) -> RankingResult:
    """Search the queries in the gallery; the standard protocol."""
    known = [tracklet.camera for tracklet in tracklets] if model.config.num_cameras else None
    rank, size = place()
    mine = range(rank, len(tracklets), size)
    frames = [tracklets[i].open() for i in mine]
    embeddings = model.encode_sequences(frames, known and [known[i] for i in mine])
    embeddings = gather_dealt(embeddings.to(model.device), len(tracklets)).cpu()
    queries, gallery = (embeddings[list(part)] for part in split)
    return rank_all(squared_euclidean_distance(queries, gallery), tracklets, split)


def rank_all(distance: Tensor, tracklets: list[Tracklet], split: Split) -> RankingResult:
    """Measure the rankings of distances, (Q, G)."""
    labels = [[tracklets[row].person for row in part] for part in split]
    labels += [[tracklets[row].camera for row in part] for part in split]
    return evaluate_ranking(distance, *labels)  # pyright: ignore[reportArgumentType]


def check_test(model: TFCLIP, tracklets: list[Tracklet], split: Split) -> None:
    """Refuse now, and not after hours of training, a test set that cannot be evaluated on."""
    try:
        rank_all(torch.zeros(1).expand(*map(len, split)), tracklets, split)
    except ValueError as error:
        raise SystemExit(f"cannot evaluate on the test set: {error}") from None
    count = model.config.num_cameras
    strangers = sorted({tracklet.camera or 0 for tracklet in tracklets} - set(range(count)))
    if count and strangers:
        raise SystemExit(
            f"the model is told cameras 0 to {count - 1}, and the test set has {strangers[0]}; "
            "leave out --cameras, or set model.num_cameras"
        )


def load_tracklets(options: argparse.Namespace) -> tuple[list[Tracklet], list[Tracklet], Split]:
    """Return training and test tracklets, and which of the latter are queries and gallery."""
    if options.root:
        dataset = load_dataset(options.data, options.root)
        return list(dataset.train), list(dataset.test), dataset.protocol().splits[0]
    paths = options.query, options.test
    query, test = (read(path, options.layout) if path else [] for path in paths)
    if options.data == "synthetic":
        train, test = draw_tracklets(options.seed, **options.settings["synthetic"])
    else:
        train = read(options.data, options.layout)
    everyone = tuple(range(len(query) + len(test)))
    return train, query + test, Split(everyone[: len(query)] or everyone, everyone)


def read(path: str, layout: str) -> list[Tracklet]:
    """Read a table or a folder."""
    return read_table(path) if path.endswith((".csv", ".parquet")) else read_folder(path, layout)


def build_model(
    options: argparse.Namespace, train_set: list[Tracklet], checkpoint: dict[str, Any] | None
) -> TFCLIP:
    """Return the model to train: the image tower of ``--init``, everything else random."""
    if checkpoint:
        return TFCLIP(TFCLIPConfig.from_dict(checkpoint["config"]))
    changes = dict(options.settings["model"])
    if options.cameras:
        numbers = [-1 if tracklet.camera is None else tracklet.camera for tracklet in train_set]
        changes.setdefault("num_cameras", 1 + max(numbers))
    if options.init == "random":
        return TFCLIP(TINY.replace(**changes))
    if options.init == "tiny":
        folder = Path(options.out, "tower")
        if place()[0] == 0 and not (folder / "config.json").exists():
            cue = options.settings["synthetic"].get("cue", "appearance")
            arguments = {"cue": cue, "seed": options.seed, **options.settings["tower"]}
            tower = pretrain(TINY.replace(**changes), device=options.device, **arguments)
            tower.save_pretrained(folder)
        from_first_process(None)  # the others wait
        start = TFCLIP.from_pretrained(folder)
    elif Path(options.init).is_dir():
        start = TFCLIP.from_pretrained(options.init)
    else:  # the reference's pixel statistics are ImageNet's, whatever the tower was trained with
        usual = TFCLIPConfig()
        start = TFCLIP.from_clip(
            "ViT-B-16", options.init, mean=usual.mean, std=usual.std, descriptor=usual.descriptor
        )
    model = TFCLIP(start.config.replace(**changes))
    model.backbone.load_state_dict(start.backbone.state_dict())
    return model


def save_checkpoint(
    out: Path, options: argparse.Namespace, state: dict[str, Any], log: list[dict[str, Any]]
) -> None:
    """Write all that the next epoch depends on, the old file or the whole new one."""
    training, optimizer = whole_state(state["step"], state["optimizer"])
    if place()[0]:
        return
    checkpoint: dict[str, Any] = {"training": training, "optimizer": optimizer}
    checkpoint |= {name: state[name].state_dict() for name in ("schedule", "average")}
    checkpoint["config"] = state["average"].module.config.to_dict()
    checkpoint |= {"log": log, "random": torch.get_rng_state(), "settings": lasting(options)}
    with replace_when_done(out / "last.pt") as temporary:
        torch.save(checkpoint, temporary)
    with replace_when_done(out / "log.json") as temporary:
        temporary.write_text(json.dumps(log, indent=1))


def load_checkpoint(path: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the checkpoint of this training, if there is one."""
    if not path.exists():
        return None
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if checkpoint["settings"] != lasting(options):
        raise SystemExit(f"{path} has other settings: {checkpoint['settings']}; use another --out")
    return checkpoint


def lasting(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that must be the same after an interruption."""
    free = ("out", "workers", "tensorboard", "device", "shard")
    return {name: value for name, value in vars(options).items() if name not in free}


def save_model(model: TFCLIP, folder: Path, options: argparse.Namespace) -> None:
    """Write a model folder that ``TFCLIP.from_pretrained`` loads."""
    if place()[0]:
        return
    trained = {"trained_by": f"examples/train.py, {options.preset} recipe, on {options.data}"}
    model.config = model.config.replace(provenance={**model.config.provenance, **trained})
    model.save_pretrained(folder)


def open_tensorboard(out: Path, num_finished: int) -> Any:
    """Return a writer of TensorBoard's files, which forgets epochs that were not finished."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SystemExit("--tensorboard needs: pip install 'tfclip[train]'") from None
    return SummaryWriter(out, purge_step=num_finished + 1)


def report(entry: dict[str, Any], progress: tqdm, writer: Any) -> None:
    """Say in a line how an epoch went."""
    numbers = {name: value for name, value in entry.items() if isinstance(value, float)}
    shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    progress.write(f"epoch {entry['epoch']}  {shown}")
    for name, value in numbers.items() if writer else ():
        writer.add_scalar(name, value, entry["epoch"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("data", help="a folder of crops, a table, 'synthetic', or a data set's name with --root")
    add("--root", help="folder of a data set that tfclip.data.load_dataset knows by name")
    add("--out", required=True, help="folder for checkpoints, log and the model")
    add("--test", help="folder or table to test on")
    add("--query", help="folder or table of queries; the gallery is then queries and test")
    add("--layout", default="auto", help="how folders are named; see tfclip.data.read_folder")
    add("--preset", default="reference", choices=PRESETS, help="learning rates and epochs")
    add("--init", default="openai", help="a tag of CLIP's ViT-B-16, a folder, 'tiny' or 'random'")
    add("--set", nargs="*", default=[], metavar="SECTION.NAME=VALUE", dest="changes",
        help=f"change a field; the sections are {', '.join(SECTIONS)}")  # fmt: skip
    add("--cameras", action="store_true", help="tell the model the camera, as the reference does")
    add("--jitter", action="store_true", help="also change colours; the reference does not")
    add("--legacy-erasing", action="store_true", help="erase at the reference's wrong place")
    add("--bf16", action="store_true", help="mixed precision")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--accumulate", type=int, default=1, help="batches for one step of the optimizer")
    add("--ema", type=float, default=0.0, help="average the weights with this decay, e.g. 0.999")
    add("--evaluate-every", type=int, default=10, help="epochs")
    add("--select-on-test", action="store_true", help="also keep the best on the test set")
    add("--tensorboard", action="store_true")
    add("--workers", type=int, default=0, help="processes that read clips")
    add("--shard", action="store_true", help="FSDP2: processes share weights and Adam's moments")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.shard and options.ema:
        parser.error(f"--ema must be 0 with --shard, got {options.ema}")
    options.settings = {name: {} for name in SECTIONS}
    for change in options.changes:
        place, _, value = change.partition("=")
        section, _, name = place.partition(".")
        if section not in options.settings:
            parser.error(f"--set takes {', '.join(options.settings)}, got {change!r}")
        try:
            options.settings[section][name] = json.loads(value)
        except json.JSONDecodeError:
            options.settings[section][name] = value
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return options


if __name__ == "__main__":
    main()
