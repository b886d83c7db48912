"""The benchmark of reading runs, in small, in each of its modes."""

import re

import numpy as np
import pytest

from tests.example_scripts import load_example


@pytest.fixture
def benchmark():
    return load_example("benchmark_pipeline")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ("decode --frames 12 --rounds 1 --size 64 32 --workers 0 2", 10),
        ("end_to_end --frames 32 --rounds 1 --size 64 32 --workers 2 --model miniature", 4),
        ("jobs --model miniature --frames 20 --size 64 32 --tracklets 150 --workers 2", 10),
        ("differences --identities 2 --length 9 12 --size 64 32", 10),
    ],
)
def test_each_mode_prints_its_rows(benchmark, monkeypatch, capsys, arguments, rows):
    monkeypatch.setattr("sys.argv", ["benchmark_pipeline", *arguments.split()])
    benchmark.main()
    text = capsys.readouterr().out
    assert len(re.findall("frames/s|mAP", text)) == rows
    if arguments.startswith("differences"):
        assert re.search(r"exact: .* cosine at least 1\.000000, median 1\.000000", text)


def test_rates_of_tenths_are_those_of_the_notes(benchmark, tmp_path):
    watch = benchmark.Watch(tmp_path / "o", np.array([1]))
    watch.stop()
    # Ten frames a second for 100 frames, five for the next 100; a MiB more each second.
    seconds = np.arange(31)
    frames = np.minimum(10 * seconds, 100 + 5 * np.maximum(seconds - 10, 0))
    watch._notes = list(zip(seconds, frames, 500.0 + seconds, strict=True))
    rates, memory = zip(*watch.tenths(), strict=True)
    assert rates == pytest.approx([10] * 5 + [5] * 5)
    assert memory == pytest.approx([502, 504, 506, 508, 510, 514, 518, 522, 526, 530])
