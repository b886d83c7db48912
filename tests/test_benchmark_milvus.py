"""The benchmark of Milvus runs on few entries and says what it measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark_milvus.py"


@pytest.mark.slow
@pytest.mark.parametrize("partition", [[], ["--partition", "camera"]])
def test_milvus_lite_is_filled_searched_and_asked_by_two_clients(
    partition: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("milvus_lite")
    pytest.importorskip("pyarrow")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmark_milvus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    small = ["--size", "400", "--queries", "40", "--seconds", "0.3", *partition]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *small])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"400 entries x 512, partition: {partition[-1] if partition else '-'}"
    facts = {line[:20].strip(): line[20:].split() for line in lines[1:]}
    assert facts["recall@10"] == facts["recall@10, a camera"] == ["1.0000"]
    for name in ("one query", "32 queries", "one query, a camera", "1 client(s)", "2 client(s)"):
        assert facts[name][0] == "p50"
        assert float(facts[name][1]) <= float(facts[name][4])
