"""The benchmark of several processes runs, in small, and divides the right numbers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark_scaling.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_scaling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_training_is_measured_by_processes_and_threads(benchmark, monkeypatch, capsys):
    pytest.importorskip("accelerate", reason="several processes need the extra 'train'")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    monkeypatch.delitem(benchmark.TRAINING, "1 process, 2 threads")
    arguments = "--model miniature --clips 8 --rounds 1 --minutes 0.01"
    benchmark.main(["train", *arguments.split()])
    text = capsys.readouterr().out
    assert re.search(r"cores.*torch \d.*model miniature\n8 clips of 8 frames a step, 1 round", text)
    rows = re.findall(r"^\| (\d process.*) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M)
    assert [row[0] for row in rows] == list(benchmark.TRAINING)
    assert rows[0][2] == "1.00"
    rates = [float(row[1]) for row in rows]
    assert float(rows[1][2]) == pytest.approx(rates[1] / rates[0], rel=0.05, abs=0.01)


@pytest.mark.slow
def test_encoding_is_measured_here_and_with_ray(benchmark, monkeypatch, capsys):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    for way in ("here, 2 threads", "Ray, 2 actors of 1 thread"):
        monkeypatch.delitem(benchmark.ENCODING, way)
    arguments = "--model miniature --size 64 32 --rounds 1 --frames 900 --workers 0"
    benchmark.main(["encode", *arguments.split()])
    text = capsys.readouterr().out
    assert re.search(r"^\d+ tracklets of \d+ frames, 1 round", text, re.M)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| here", "| Ray"))]
    assert [row[0].removeprefix("| ") for row in rows] == list(benchmark.ENCODING)
    here, there = rows
    assert here[-2:] == ["-", "- |"]
    job, around = float(there[1]), float(there[4])
    costs = [float(cell.removesuffix(" |").removesuffix(" %")) for cell in there[-2:]]
    least, most = float(here[1]) - 0.05, float(here[1]) + 0.05  # as it was before it was rounded
    for cost, spent in zip(costs, (job, job + around), strict=True):
        assert 100 * ((spent - 0.1) / most - 1) <= cost <= 100 * ((spent + 0.1) / least - 1)


def test_ratios_are_those_of_the_same_round(benchmark):
    results = {
        "mine": [{"job": 3.0, "all": 6.0}, {"job": 8.0, "all": 9.0}, {"job": 50.0, "all": 50.0}],
        "its": [{"job": 2.0}, {"job": 4.0}, {"job": 10.0}],
    }
    assert benchmark.ratio(results, "job", "mine", "its") == 2.0  # of 1.5, 2 and 5
    assert benchmark.ratio(results, "all", "mine", "its", of="job") == 3.0  # of 3, 2.25 and 5


def test_the_job_is_the_same_in_every_process_and_as_long_as_is_asked(benchmark, tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.jpg").touch()
    job, again = (benchmark.make_job(str(tmp_path), 6_000) for _ in range(2))
    assert [(t.name, t.frames) for t in job] == [(t.name, t.frames) for t in again]
    lengths = np.array([len(tracklet.frames) for tracklet in job])
    assert 6_000 <= lengths.sum() < 6_900
    assert 45 < lengths.mean() < 75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--clips", "12"], "--clips must be a multiple of 8, 4 of each person, got 12"),
        (["encode", "--rounds", "0"], "--minutes and --rounds must be above 0"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
