"""Measure what several processes bring, and what they cost: training and encoding.

    python examples/benchmark_scaling.py train --minutes 9     # 1 or 2 processes, 1 or 2 threads
    python examples/benchmark_scaling.py encode --minutes 2    # here, and with Ray; minutes a job

Every way runs in processes of its own. Machines are noisy: the ways take turns, and medians of the
ratios of neighbouring turns are printed. Frames of the training are noise; the encoding reads JPEG
files of drawn people, in tracklets as long as those of MARS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tfclip import TFCLIP, TFCLIPConfig, TFCLIPObjective
from tfclip.ahead import check_workers
from tfclip.cluster import ClusterEncoder, RayCluster, _import_ray
from tfclip.data import SyntheticTracklets, Tracklet
from tfclip.distributed import from_first_process, join_processes, place, share_gradients
from tfclip.groups import GroupEncoder
from tfclip.jobs import encode_to_file
from tfclip.precision import processor_name
from tfclip.reading import Reading
from tfclip.training import Recipe, TrainingStep

NUM_IDENTITIES, CLIPS_OF_A_PERSON = 128, 4
WORLD = 2**32 + 2  # one that the bundled model has not seen
STARTED = 8  # files for each of as many people in two cameras; tracklets draw from all of them

Result = dict[str, float]
TRAINING = {  # processes, threads of each
    "1 process, 1 thread": (1, 1),
    "1 process, 2 threads": (1, 2),
    "2 processes, 1 thread each": (2, 1),
}
ENCODING = {  # actors, threads of each; no actor is this process
    "here, 1 thread": (0, 1),
    "here, 2 threads": (0, 2),
    "Ray, 1 actor of 1 thread": (1, 1),
    "Ray, 2 actors of 1 thread": (2, 1),
}
RIVALS = {  # the same threads in all
    "Ray, 1 actor of 1 thread": "here, 1 thread",
    "Ray, 2 actors of 1 thread": "here, 2 threads",
}


def build_model(name: str) -> TFCLIP:
    """Return the bundled model, ViT-B/16 at 256 x 128 with random weights, or a miniature."""
    if name == "tiny":
        return TFCLIP.from_pretrained("tfclip-tiny")
    torch.manual_seed(0)
    if name == "vit":
        return TFCLIP(TFCLIPConfig()).eval()
    sizes = {"width": 64, "layers": 1, "heads": 1, "output_dim": 32}
    return TFCLIP(TFCLIPConfig(backbone_options=sizes, frame_size=(32, 16))).eval()


# --- taking turns --------------------------------------------------------------------------------


def describe_machine(options: argparse.Namespace) -> None:
    """Print what the numbers are of."""
    versions = [f"Python {sys.version.split()[0]}"]
    for package in ("torch", "accelerate", "ray"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    print(f"{processor_name()}, {cores} cores{load}; {', '.join(versions)}; model {options.model}")


def run(what: str, processes: int, threads: int, *arguments: object) -> Result:
    """Run one way in a process of its own, or several by torchrun; return what it printed last."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher += [f"{processes}"]
    command = [*launcher, __file__, what, "--threads", f"{threads}", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": f"{threads}"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratio(results: dict[str, list[Result]], name: str, way: str, rival: str, of: str = "") -> float:
    """Return the median of one way's numbers, divided by the rival's of the same round."""
    pairs = zip(results[way], results[rival], strict=True)
    return statistics.median(mine[name] / its[of or name] for mine, its in pairs)


def median(results: list[Result], name: str) -> float:
    """Return the median of a number over all rounds."""
    return statistics.median(result[name] for result in results)


# --- training ------------------------------------------------------------------------------------


def measure_training(options: argparse.Namespace) -> None:
    """Print steps a second by processes and threads; the batch of all together is the same."""
    describe_machine(options)
    each = 60 * options.minutes / (options.rounds * len(TRAINING))
    shared = ("--model", options.model, "--clips", options.clips, "--seconds", each)
    results: dict[str, list[Result]] = {way: [] for way in TRAINING}
    for way in tqdm([*TRAINING] * options.rounds, unit="turn", disable=None):
        results[way].append(run("train-one", *TRAINING[way], *shared))
    print(
        f"{options.clips} clips of 8 frames a step, {options.rounds} rounds of {each:.0f} s each\n"
    )
    alone = [way for way, (processes, _) in TRAINING.items() if processes == 1]
    print(f"| | steps/s | {' | '.join(f'times {rival}' for rival in alone)} |")
    print(f"| --- | ---: |{' ---: |' * len(alone)}")
    for way, found in results.items():
        ratios = [ratio(results, "rate", way, rival) for rival in alone]
        cells = " | ".join(f"{value:.2f}" for value in ratios)
        print(f"| {way} | {median(found, 'rate'):.2f} | {cells} |")


def train_one(options: argparse.Namespace) -> None:
    """Take steps for some time and print their rate."""
    torch.set_num_threads(options.threads)
    join_processes("cpu")
    rank, size = place()
    model = build_model(options.model)
    memory = torch.randn(NUM_IDENTITIES, model.part_widths["projected"])
    objective = TFCLIPObjective(model.config, NUM_IDENTITIES, memory)
    shared = share_gradients(TrainingStep(model, objective)).train()
    optimizer = Recipe().optimizer(model, objective)
    mine = slice(rank * options.clips // size, (rank + 1) * options.clips // size)
    identities = (torch.arange(options.clips) // CLIPS_OF_A_PERSON)[mine]
    frames = torch.randn(len(identities), 8, 3, *model.config.frame_size)

    def steps(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            shared(frames, None, identities)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    steps(1)  # memory is taken and weights are laid out
    count = from_first_process(max(2, round(options.seconds / steps(1))))
    spent = steps(count)  # the gradients of all meet in each step, so that nobody is ahead
    if rank == 0:
        print(json.dumps({"rate": count / spent}))


# --- encoding ------------------------------------------------------------------------------------


def measure_encoding(options: argparse.Namespace) -> None:
    """Print how long one job takes here and with Ray, and what Ray costs."""
    describe_machine(options)
    with tempfile.TemporaryDirectory() as folder:
        people = SyntheticTracklets(
            STARTED, 2, 1, num_frames=(16, 16), frame_size=tuple(options.size), seed=WORLD
        )
        people.write(folder, "jpg")
        shared = ["--model", options.model, "--folder", folder]
        if options.workers is not None:
            shared += ["--workers", f"{options.workers}"]
        frames = options.frames
        if frames is None:  # a short job says how many frames fill the minutes
            tried = run("encode-one", 1, 2, *shared, "--frames", 4096, "--actors", 0)
            frames = round(60 * options.minutes * 4096 / tried["job"])
        results: dict[str, list[Result]] = {way: [] for way in ENCODING}
        for way in tqdm([*ENCODING] * options.rounds, unit="turn", disable=None):
            actors, threads = ENCODING[way]
            job = ("--frames", frames, "--actors", actors)
            results[way].append(run("encode-one", 1, threads, *shared, *job))
    print_encoding(options, results)


def print_encoding(options: argparse.Namespace, results: dict[str, list[Result]]) -> None:
    """Print the table of jobs."""
    any_job = results["here, 1 thread"][0]
    print(f"{any_job['tracklets']:.0f} tracklets of {any_job['frames']:.0f} frames, ", end="")
    print(f"{options.rounds} rounds\n")
    print("| | job, s | frames/s | until the first group, s | Ray's start and end, s ", end="")
    print("| overhead | with start and end |\n| --- |" + " ---: |" * 6)
    for way, found in results.items():
        cells = [f"{median(found, 'job'):.1f}", f"{median(found, 'rate'):,.0f}"]
        cells += [f"{median(found, 'first'):.1f}", "-", "-", "-"]
        if rival := RIVALS.get(way):
            names = ("job", "all")
            costs = [ratio(results, name, way, rival, of="job") - 1 for name in names]
            cells[3:] = [f"{median(found, 'around'):.1f}", *(f"{100 * c:+.1f} %" for c in costs)]
        print(f"| {way} | {' | '.join(cells)} |")


def make_job(folder: str, frames: int) -> list[Tracklet]:
    """Return tracklets as long as those of MARS, out of the files of a folder."""
    files = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
    source = np.random.default_rng(0)
    tracklets: list[Tracklet] = []
    total = 0
    while total < frames:  # 59 frames in the mean, but 2 to 900
        length = int(np.clip(source.lognormal(3.7, 0.9), 2, 900))
        chosen = source.integers(0, len(files), length)
        tracklets.append(Tracklet(name=f"{len(tracklets):07d}", frames=[files[k] for k in chosen]))
        total += length
    return tracklets


def encode_one(options: argparse.Namespace) -> None:
    """Do the job once, and print how long it and Ray's start and end took."""
    torch.set_num_threads(options.threads)
    model = build_model(options.model)
    tracklets = make_job(options.folder, options.frames)
    total = sum(len(tracklet.frames) for tracklet in tracklets)
    cluster, around, ray = None, 0.0, None
    if options.actors:
        cluster = RayCluster(actors=options.actors, cpus_per_actor=options.threads)
        workers = check_workers(options.workers, "cpu")
        encoder = GroupEncoder(model, "dense", False, Reading(), 64, workers)
        start = time.perf_counter()
        ray = _import_ray()
        ClusterEncoder(encoder, cluster)._start(ray)  # as a job does that finds it not running
        around = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.safetensors")
        first = FirstGroup(out)
        start = time.perf_counter()
        encode_to_file(model, tracklets, out, cluster=cluster, workers=options.workers)
        job = time.perf_counter() - start
        begun = first.stop(start, job)
    if ray is not None:
        start = time.perf_counter()
        ray.shutdown()
        around += time.perf_counter() - start
    found = {"job": job, "all": job + around, "around": around, "first": begun}
    found |= {"rate": total / job, "frames": total, "tracklets": len(tracklets)}
    print(json.dumps(found))


class FirstGroup(threading.Thread):
    """Look ten times a second whether the first group of a job is on disk."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self._parts = out.with_name(f"{out.name}.parts")
        self._stopped = threading.Event()
        self._seen: float | None = None
        self.start()

    def run(self) -> None:
        """Look."""
        while self._seen is None and not self._stopped.wait(0.1):
            if self._parts.exists():
                self._seen = time.perf_counter()

    def stop(self, start: float, job: float) -> float:
        """Return the seconds from the start of the job to its first group, or all."""
        self._stopped.set()
        self.join()
        return job if self._seen is None else self._seen - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    ways: dict[str, Any] = {"train": measure_training, "encode": measure_encoding}
    ways |= {"train-one": train_one, "encode-one": encode_one}  # what these start
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=ways, metavar="train|encode")
    add = parser.add_argument
    add("--minutes", type=float, default=2.0, help="of all training; of each job of encoding (2)")
    add("--rounds", type=int, default=3, help="turns of each way (3)")
    add("--model", choices=("tiny", "vit", "miniature"), default="tiny")
    add("--clips", type=int, default=32, help="of a step, all processes together (32)")
    add("--frames", type=int, help="of the job, in place of --minutes")
    add("--size", type=int, nargs=2, default=(128, 64), help="of drawn files (128 64)")
    add("--workers", type=int, help="threads that read frames, in each process")
    for name, kind in (("threads", int), ("actors", int), ("seconds", float), ("folder", str)):
        add(f"--{name}", type=kind, default=kind(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.clips % (2 * CLIPS_OF_A_PERSON):
        parser.error(f"--clips must be a multiple of 8, 4 of each person, got {options.clips}")
    if min(options.minutes, options.rounds) <= 0:
        parser.error("--minutes and --rounds must be above 0")
    ways[options.what](options)


if __name__ == "__main__":
    main()
