"""The benchmark of re-ranking runs, in small; its dense rival is checked against ours."""

import numpy as np
import pytest

from tests.example_scripts import load_example
from tfclip.functional import k_reciprocal_rerank


@pytest.fixture
def benchmark():
    return load_example("benchmark_rerank")


def test_the_dense_rival_gives_the_same_distances(benchmark):
    rows, _, _ = benchmark.draw(130, 24, 9.0, 1.0)
    queries, gallery = rows[:20].double(), rows[20:].double()
    dense = benchmark.dense_rerank(queries.numpy(), gallery.numpy())
    assert np.abs(k_reciprocal_rerank(queries, gallery).numpy() - dense).max() < 1e-12


@pytest.mark.slow
def test_the_rivals_are_measured_in_processes_and_growth_is_drawn(
    benchmark, monkeypatch, capsys, tmp_path
):
    pytest.importorskip("matplotlib")
    small = "--queries", "20", "--width", "8"
    monkeypatch.setattr(
        "sys.argv", ["benchmark_rerank", "mars", *small, "--gallery", "200", "--rounds", "1"]
    )
    benchmark.main()
    text = capsys.readouterr().out
    assert text.startswith("20 x 200 x 8")
    assert "places of whole rankings that hold the same row: 100.000%" in text
    plot = tmp_path / "growth.svg"
    monkeypatch.setattr(benchmark, "GROWTH", (100,))
    monkeypatch.setattr("sys.argv", ["benchmark_rerank", "growth", *small, "--plot", str(plot)])
    benchmark.main()
    assert f"drawn in {plot}" in capsys.readouterr().out
    assert plot.stat().st_size > 1000


@pytest.mark.slow
def test_an_index_is_measured_against_the_exact_search(benchmark, monkeypatch, capsys):
    pytest.importorskip("faiss")
    small = "--queries", "20", "--width", "8", "--gallery", "900"
    monkeypatch.setattr("sys.argv", ["benchmark_rerank", "approximate", *small])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["not", "exact", "hnsw", "ivf"]
    assert "100.0%" in lines[3]
