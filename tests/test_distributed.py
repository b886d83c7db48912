"""Training on two processes is the training of one with the same batches."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tfclip.distributed import gather_dealt, gather_with_gradient, join_processes, share_gradients

pytest.importorskip("accelerate", reason="several processes need the extra 'train'")

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SETTINGS = [
    'model.backbone_options={"width":32,"layers":1,"heads":2,"patch_size":8,"output_dim":16}',
    *("model.temporal_heads=2", "model.clip_length=4", "objective.dropout=0.0"),
    *("recipe.epochs=6", "recipe.identities_per_batch=2", "recipe.tracklets_per_identity=2"),
    *("synthetic.num_identities=4", "synthetic.num_cameras=2", "synthetic.num_frames=5"),
    "synthetic.tracklets_per_camera=2",
]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}


def run(mode: str, out: Path, *, processes: int) -> list[dict]:
    """Run a mode of the worker and return what each process wrote."""
    launcher = TORCHRUN if processes == 2 else (sys.executable,)
    command = [*launcher, str(TESTS / "distributed_worker.py"), mode, str(out)]
    subprocess.run(command, env=environment(), check=True, timeout=240, capture_output=True)
    return [torch.load(f"{out}.{rank}") for rank in range(processes)]


@pytest.mark.slow
def test_gathered_rows_are_in_order_and_each_gets_the_sum_of_its_gradients(tmp_path):
    first, second = run("gather", tmp_path / "out", processes=2)
    for total, dealt in zip((0, 1, 2, 7), first["dealt"], strict=True):
        assert dealt.flatten().tolist() == list(range(total))
    assert torch.equal(first["gathered"], torch.tensor([[0.0] * 3] * 2 + [[1.0] * 3] * 2))
    weights = torch.arange(12.0).view(4, 3) * 11  # 1 from process 0, 10 from process 1
    assert torch.equal(first["gradient"], weights[:2])
    assert torch.equal(second["gradient"], weights[2:])
    for name in ("gathered", "dealt"):
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp", "momentum"])
def test_two_processes_take_the_steps_of_one(mode, tmp_path):
    (alone,) = run(mode, tmp_path / "alone", processes=1)
    for process in run(mode, tmp_path / "shared", processes=2):
        assert len(process["losses"]) >= 3
        for losses, expected in zip(process["losses"], alone["losses"], strict=True):
            assert losses == pytest.approx(expected, abs=1e-7)
        torch.testing.assert_close(process["memory"], alone["memory"], atol=1e-6, rtol=0)
        assert process["weights"].keys() == alone["weights"].keys()
        for name, weights in alone["weights"].items():
            torch.testing.assert_close(process["weights"][name], weights, atol=1e-7, rtol=1e-7)
    first, last = alone["losses"][0]["loss"], alone["losses"][-1]["loss"]
    assert first != pytest.approx(last, abs=1e-3), "the steps must have changed something"


def arguments(out: Path, *more: str) -> list[str]:
    options = ("synthetic", "--preset", "tiny", "--init", "random", "--device", "cpu")
    return [*options, "--evaluate-every", "1", "--out", str(out), *more, "--set", *SETTINGS]


@pytest.mark.slow
def test_a_training_killed_on_two_processes_goes_on_in_one_and_ends_as_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    train = importlib.import_module("train")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train.main(arguments(whole))
        command = [*TORCHRUN, str(EXAMPLES / "train.py"), *arguments(killed, "--shard")]
        with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as launcher:
            deadline = time.monotonic() + 120
            while not (killed / "last.pt").exists():
                assert launcher.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            launcher.terminate()  # and the launcher kills its processes
        finished = torch.load(killed / "last.pt", weights_only=True)["log"]
        assert 1 <= len(finished) < 6
        train.main(arguments(killed))
    finally:
        torch.set_num_threads(threads)
    expected, actual = (json.loads((out / "log.json").read_text()) for out in (whole, killed))
    assert len(actual) == len(expected) == 6
    for entry, truth in zip(actual, expected, strict=True):
        assert entry["loss"] == pytest.approx(truth["loss"], rel=1e-4)
        assert entry["protocol"] == truth["protocol"]
        assert entry["mAP"] == pytest.approx(truth["mAP"], abs=1e-3)
    assert (killed / "model" / "model.safetensors").exists()


def test_a_share_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="rows must be 3 of 3 in process 0, got 2"):
        gather_dealt(torch.zeros(2, 1), 3)


def test_alone_nothing_is_gathered_wrapped_or_moved():
    rows = torch.ones(2, requires_grad=True)
    assert gather_with_gradient(rows) is rows
    module = torch.nn.Linear(2, 2)
    assert share_gradients(module) is module
    assert join_processes("cpu") == torch.device("cpu")
