"""The benchmark of evaluation runs, in small; what it measures is checked by itself."""

import pytest

from tests.example_scripts import load_example


@pytest.fixture
def benchmark(monkeypatch):
    module = load_example("benchmark_evaluation")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["benchmark_evaluation", *arguments])
        module.main()

    return run


def test_the_rivals_agree_and_take_turns(benchmark, capsys):
    benchmark("matrix", "--queries", "30", "--gallery", "200", "--width", "32", "--rounds", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("30 x 200")
    assert sum("numpy loop with list" in line for line in lines) == 2  # two noises


@pytest.mark.slow
def test_a_child_reports_its_memory_and_growth_is_drawn(benchmark, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    benchmark("features", "--queries", "20", "--gallery", "300", "--width", "8")
    assert "MiB (the process, with torch)" in capsys.readouterr().out
    plot = tmp_path / "growth.png"
    benchmark(
        *("growth", "--queries", "20", "--gallery", "2000", "--width", "8", "--plot", str(plot))
    )
    assert capsys.readouterr().out.count("\n") == 8
    assert plot.stat().st_size > 1000
