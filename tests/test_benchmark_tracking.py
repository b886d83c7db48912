"""The benchmark of growing tracklets: what it counts as a switch, and that it runs."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.example_scripts import load_example


@pytest.fixture(scope="module")
def benchmark():
    return load_example("benchmark_tracking")


def test_tracks_are_cut_at_the_same_frames_and_only_some_are_seen(benchmark):
    persons, frames = [1] * 10 + [2] * 10, [*range(10), *range(10)]
    pieces = benchmark.cut(persons, frames, length=6, seen=4, phase=0)
    assert [(p.person, p.block, p.crops) for p in pieces] == [
        (1, 0, [0, 1, 2, 3]),
        (1, 1, [6, 7, 8, 9]),
        (2, 0, [10, 11, 12, 13]),
        (2, 1, [16, 17, 18, 19]),
    ]


def test_a_piece_that_gets_the_past_of_another_is_a_switch(benchmark):
    left, right, far = torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), torch.tensor([-1.0, 0])
    assert benchmark.switches({1: left, 2: right}, {1: left, 2: right}) == (0, 2)
    assert benchmark.switches({1: left, 2: right}, {1: right, 2: left}) == (2, 2)
    assert benchmark.switches({1: left, 2: right}, {1: left, 3: far}) == (0, 1)  # 3 is new
    assert benchmark.switches({1: left}, {1: far, 3: left}) == (1, 1)  # 3 took its place


def test_the_rate_is_printed_with_the_memory(benchmark, monkeypatch, capsys):
    command = ["rate", "--model", "miniature", "--tracks", "20", "--updates", "5", "--crops", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark_tracking.py", *command])
    benchmark.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5
