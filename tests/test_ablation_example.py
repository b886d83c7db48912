"""The ablation script: it runs, keeps what is done, and its controls are what they say."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def script(monkeypatch):
    """The script with few and small people."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    ablation: Any = importlib.import_module("ablation")
    small = {"width": 16, "layers": 1, "heads": 2, "patch_size": 8, "output_dim": 16}
    config = ablation.MODEL.replace(backbone_options=small, temporal_heads=2, temporal_depth=1)
    monkeypatch.setattr(ablation, "MODEL", config)
    monkeypatch.setattr(ablation, "PEOPLE", 8)
    monkeypatch.setattr(ablation, "TEST_PEOPLE", 4)
    pretrain = ablation.pretrain
    monkeypatch.setattr(importlib.import_module("pretrain"), "GROUP", 4)
    shorter = {"groups": 1, "steps": 1}
    monkeypatch.setattr(ablation, "pretrain", lambda *a, **k: pretrain(*a, **{**k, **shorter}))
    ablation.draw.cache_clear()
    yield ablation
    ablation.draw.cache_clear()


@pytest.mark.slow
def test_every_row_is_trained_once_and_kept(script, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ablation.json"
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(out), "--seeds", "1", "--epochs", "1"])
    script.main()
    tables = capsys.readouterr().out
    for table in script.TABLES.values():
        assert all(f"| {name} |" in tables for name in table)
    results = json.loads(out.read_text())
    rows = [row for table in script.TABLES.values() for row in table.values()]
    assert len(results) == len({script.key(row, 0, argparse.Namespace(epochs=1)) for row in rows})
    for run in results.values():
        assert all(0 <= run[name] <= 1 for name in ("rank1", "mAP", "last", "look"))

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(script, "run", refuse)
    script.main()
    assert capsys.readouterr().out == tables


def test_who_knows_the_look_alone_finds_the_person_half_of_the_time(script):
    _, test_set = script.draw("badge", 8, 0)
    people = torch.tensor([tracklet.person for tracklet in test_set])
    for person in people.unique():
        rows = [tracklet for tracklet in test_set if tracklet.person == person]
        assert [tracklet.camera for tracklet in rows] == [4, 5]  # once in each test camera
    assert sorted({int(person) // 2 for person in people}) == [
        4,
        5,
    ]  # whole pairs, none in training
