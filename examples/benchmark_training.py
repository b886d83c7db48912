"""Measure what a training step costs, against a plain implementation of the same step.

    python examples/benchmark_training.py step --rounds 3       # ViT-B/16, 16 clips of 8 frames
    python examples/benchmark_training.py step --clips 4        # on a machine with less memory
    python examples/benchmark_training.py prompt                # attention among the memory's rows
    python examples/benchmark_training.py draw                  # synthetic tracklets

Machines are noisy: the rivals take turns, and the median of the ratios of neighbouring turns is
printed. Weights and frames are random. The plain step computes the same losses from the same
weights the way the method is usually written down: every token of every frame is projected, the
memory is copied for each clip before its rows attend to one another, and the optimizer visits one
parameter after the other.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tfclip import TFCLIP, SequenceSpecificPrompt, TFCLIPConfig, TFCLIPObjective
from tfclip.data import SyntheticTracklets
from tfclip.model import TFCLIPOutput
from tfclip.training import Recipe, named_parameters

MARS = {"num_identities": 625, "num_cameras": 6}
NUM_FRAMES, CLIPS_OF_A_PERSON = 8, 4


class PlainObjective(TFCLIPObjective):
    """The objective with a copy of the memory for each clip."""

    def updated_memory(self, output: TFCLIPOutput) -> Tensor:
        """Update every clip's copy of the memory."""
        assert self.memory is not None
        assert self.prompt is not None
        memory = self.memory.centroids.expand(len(output.projected), -1, -1)
        return memory + self.prompt(memory, output.projected_tokens)


class PlainModel(TFCLIP):
    """The model with the projection of every token of every frame."""

    def _project_tokens(self, frame_tokens: Tensor, frame_mask: Tensor | None) -> Tensor:
        return self.backbone.project(frame_tokens).mean(1)


class Step:
    """One step of training: forward, losses, backward, optimizer."""

    def __init__(self, name: str, num_clips: int, device: str) -> None:
        torch.manual_seed(0)
        implementation, self.precision, *options = name.split()
        config = TFCLIPConfig(num_cameras=MARS["num_cameras"])
        plain = implementation == "plain"
        self.model = (PlainModel if plain else TFCLIP)(config).to(device)
        self.model.backbone.set_gradient_checkpointing("checkpointing" in options)
        memory = torch.randn(MARS["num_identities"], self.model.part_widths["projected"])
        objective_class = PlainObjective if plain else TFCLIPObjective
        self.objective = objective_class(config, MARS["num_identities"], memory).to(device)
        recipe = Recipe()
        self.optimizer = recipe.optimizer(self.model, self.objective)
        if plain:
            rates = {
                parameter: recipe.learning_rate * recipe.multiplier(name)
                for name, parameter in named_parameters(self.model, self.objective)
            }
            self.optimizer = torch.optim.Adam(
                [{"params": [parameter], "lr": rate} for parameter, rate in rates.items()],
                weight_decay=recipe.weight_decay,
            )
        self.frames = torch.randn(num_clips, NUM_FRAMES, 3, *config.frame_size, device=device)
        self.cameras = torch.arange(num_clips, device=device) % MARS["num_cameras"]
        of_a_person = max(1, min(CLIPS_OF_A_PERSON, num_clips // 2))  # two persons at least
        self.identities = torch.arange(num_clips, device=device) // of_a_person

    def __call__(self) -> float:
        """Do the step and return the loss."""
        kind = self.frames.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            losses = self.objective(self.model(self.frames, self.cameras), self.identities)
        losses.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses.total.item()


STEPS = ("plain float32", "ours float32", "plain bf16", "ours bf16", "ours bf16 checkpointing")


def measure_steps(options: argparse.Namespace) -> None:
    """Print rate, ratio and peak memory of each kind of step."""
    times: dict[str, list[float]] = {name: [] for name in STEPS}
    for name in tqdm([name for _ in range(options.rounds) for name in STEPS], unit="step"):
        step = Step(name, options.clips, options.device)  # one at a time: each fills the memory
        step()  # warm up
        times[name].append(seconds(step))
        del step
    peaks = {name: peak_of(name, options) for name in STEPS}
    print(f"{options.clips} clips of {NUM_FRAMES} frames, {torch.get_num_threads()} threads")
    print("| step | clips/s | times the rate of the first | peak memory |")
    print("| --- | ---: | ---: | ---: |")
    for name in STEPS:
        ratio = statistics.median(a / b for a, b in zip(times[STEPS[0]], times[name], strict=True))
        rate = options.clips / statistics.median(times[name])
        print(f"| {name} | {rate:.2f} | {ratio:.2f} | {peaks[name] / 1024:.1f} GiB |")


def peak_of(name: str, options: argparse.Namespace) -> float:
    """Return the most MiB that a process of its own takes for two steps."""
    command = [sys.executable, __file__, "one", "--name", name, "--clips", str(options.clips)]
    command += ["--device", options.device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure_one(options: argparse.Namespace) -> None:
    """Do two steps, print the most MiB that were held."""
    step = Step(options.name, options.clips, options.device)
    step()
    step()
    if options.device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:  # what getrusage says would include what the parent process held
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def measure_prompt(options: argparse.Namespace) -> None:
    """Print what attention among the memory's rows costs once per batch, and once per clip."""
    torch.manual_seed(0)
    shared = SequenceSpecificPrompt(512, dropout=0.0).to(options.device)
    copied = copy.deepcopy(shared)
    tokens = torch.randn(options.clips, 129, 512, device=options.device)

    def run(prompt: SequenceSpecificPrompt, memory: Tensor) -> None:
        prompt(memory, tokens).square().mean().backward()
        prompt.zero_grad()

    print(f"{options.clips} clips, {torch.get_num_threads()} threads, forward and backward")
    print("| identities | copied for each clip | shared | times as fast |")
    print("| ---: | ---: | ---: | ---: |")
    for num_identities in (150, 625, 2000):
        memory = torch.randn(num_identities, 512, device=options.device)
        copies = memory.expand(options.clips, -1, -1)
        run(shared, memory)
        pairs = []
        for _ in range(options.rounds):
            pairs.append((seconds(run, copied, copies), seconds(run, shared, memory)))
        ratio = statistics.median(slow / fast for slow, fast in pairs)
        slow, fast = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {num_identities} | {slow:.2f} s | {fast:.2f} s | {ratio:.2f} |")


def measure_drawing(options: argparse.Namespace) -> None:
    """Print how many frames one core draws a second."""
    for size in ((64, 32), (128, 64), (256, 128)):
        people = SyntheticTracklets(20, 4, 1, 16, size)
        for number in range(4):  # every camera's place is drawn once
            people[number]
        rates = []
        for turn in range(options.rounds):
            start = time.process_time()  # what others do on the machine does not count
            frames = sum(len(people[number].frames) for number in range(16 * turn, 16 * turn + 16))
            rates.append(frames / (time.process_time() - start))
        print(f"{size[0]} x {size[1]}: {statistics.median(rates):.0f} frames/s")


def seconds(rival: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes, the work of a GPU included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else int
    wait()
    start = time.perf_counter()
    rival(*arguments)
    wait()
    return time.perf_counter() - start


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["step", "prompt", "draw", "one"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--name", default=STEPS[0], help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    measure = {
        "step": measure_steps,
        "prompt": measure_prompt,
        "draw": measure_drawing,
        "one": measure_one,
    }
    measure[options.what](options)


if __name__ == "__main__":
    main()
