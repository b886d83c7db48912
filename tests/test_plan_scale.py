"""The plan of docs/scaling.md: its tables are the script's, and their arithmetic is right."""

from __future__ import annotations

import importlib
import itertools
import math
import random
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfclip.data import EmbeddingTable

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.fixture
def plan() -> Any:
    return importlib.import_module("plan_scale")


@pytest.fixture
def queue() -> Any:
    return importlib.import_module("encoder_queue")


def tables_of(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, re.M)


def printed(plan, capsys, *arguments: str) -> str:
    plan.main(arguments)
    return capsys.readouterr().out


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_that_the_script_prints(plan, capsys):
    page = (ROOT / "docs" / "scaling.md").read_text()
    section = page.partition("\n## A plan on paper\n")[2].partition("\n## ")[0]
    script = printed(plan, capsys) + printed(plan, capsys, "simulate")
    assert len(tables_of(script)) == 9
    assert tables_of(section) == tables_of(script)


def test_measured_inputs_are_those_of_the_benchmarks(plan):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    inputs = plan.Inputs()

    def measured(pattern: str) -> float:
        found = re.search(pattern, page, re.M)
        assert found, pattern
        return float(found[1].replace(",", ""))

    assert measured(r"^\| ours auto \| ([\d.]+) \|") == inputs.frames_per_second
    assert measured(r"^\| ours float32 \| ([\d.]+) \|") == inputs.float32_frames_per_second
    assert measured(r"^\| ours int8 \| ([\d.]+) \|") == inputs.int8_frames_per_second
    decoded = measured(r"^\| Pillow, decoding \| 1 \(([\d,]+) files/s\)")
    factor = measured(r"^\| `workers=0` \| ([\d.]+) \|")
    assert inputs.files_per_second == pytest.approx(decoded / factor, rel=1e-3)
    assert measured(r"^\| 100,000 \| ([\d.]+) \| 43\.0") == inputs.rerank_100k
    assert measured(r"^\| 200,000 \| ([\d.]+) \|") == inputs.rerank_200k
    peaks = [measured(rf"^\| {n},000 \|.*\| ([\d,]+) MiB \|.*GiB \|$") for n in (100, 200)]
    assert inputs.rerank_row_bytes == pytest.approx((peaks[1] - peaks[0]) * 2**20 / 1e5, rel=1e-2)
    alone = measured(r"^\| 1,000,000 \| exact \|.*\| ([\d.]+) \| 1 \|$")
    assert inputs.scan_bytes == pytest.approx(alone * 1e6 * 4 * 512, rel=1e-2)


def test_counted_operations_and_stated_peaks_are_those_of_the_encoding_benchmark(plan):
    benchmark = importlib.import_module("benchmark_encode")
    from tfclip import TFCLIPConfig

    counted = benchmark.products_per_frame(TFCLIPConfig())
    assert plan.Inputs().operations_per_frame == pytest.approx(counted, rel=1e-3)
    for name, peak in plan.STATED_PEAKS.items():
        assert peak == benchmark.STATED_PEAKS[name] * 1e12
    # 100e12 of 989e12 operations a second, at 2e9 a frame
    inputs = plan.Inputs(gpu_utilisation=100 / 989, operations_per_frame=2e9)
    assert plan.gpu_rate(inputs, plan.STATED_PEAKS["H100"]) == pytest.approx(50_000)


# --- arithmetic ----------------------------------------------------------------------------------


def test_a_day_of_a_million_tracklets_by_hand(plan, capsys):
    # 33 frames/s x 86,400 s = 2,851,200 frames = 47,520 tracklets of 60; a million keep 21.04
    # encoders busy, and 30.06 that may be busy for 70 % of the time.
    assert "| 33 | 2,850,000 | 47,500 | 0.0102 | 31 |" in printed(
        plan, capsys, "--frames-per-second", "33"
    )
    twice = printed(plan, capsys, "--frames-per-second", "66")
    assert "| 66 | 5,700,000 | 95,000 | 0.0205 | 16 |" in twice


def test_twice_the_tracklets_take_twice_the_bytes_and_flags_are_obeyed(plan, capsys):
    inputs = plan.Inputs()
    for name, taken in plan.INDICES.items():
        exact = 0 if name.startswith("IVF") else 1e-9  # lists grow with the root
        assert taken(inputs, 2e9) == pytest.approx(2 * taken(inputs, 1e9), rel=exact or 0.02), name
    assert plan.diskann_disk(inputs, 2e6) == 2 * plan.diskann_disk(inputs, 1e6)
    text = printed(plan, capsys, "--dim", "512", "--tracklets", "1048576", "2097152")
    assert "| float32 | 2 GiB | 4 GiB |" in text
    assert "| vectors as | 1,048,576 | 2,097,152 |" in text


def test_machines_hold_what_fits_and_no_more(plan):
    inputs = plan.Inputs(ram=10, filled=0.5)
    assert [plan.machines(inputs, gib * 2**30) for gib in (0.1, 5, 5.01, 50)] == [1, 1, 2, 10]


@pytest.mark.parametrize("kind", ["flat", "HNSW", "IVF", "IVF-SQ8", "IVF-PQ"])
def test_an_index_of_faiss_has_the_bytes_that_are_said(plan, kind):
    faiss = pytest.importorskip("faiss", reason="the extra 'index' is not installed")
    count, width, code = 2_000, 32, 8
    inputs = plan.Inputs(dim=width, code_bytes=code)
    lists = plan.clusters(count)
    coarse = faiss.IndexFlatL2(width)
    index = {
        "flat": lambda: faiss.IndexIDMap(faiss.IndexFlatL2(width)),
        "HNSW": lambda: faiss.IndexIDMap(faiss.IndexHNSWFlat(width, inputs.links)),
        "IVF": lambda: faiss.IndexIVFFlat(coarse, width, lists),
        "IVF-SQ8": lambda: faiss.IndexIVFScalarQuantizer(
            coarse, width, lists, faiss.ScalarQuantizer.QT_8bit
        ),
        "IVF-PQ": lambda: faiss.IndexIVFPQ(coarse, width, lists, code, 8),
    }[kind]()
    vectors = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(count))
    written = faiss.serialize_index(index).nbytes
    assert plan.INDICES[kind](inputs, count) == pytest.approx(written, rel=0.02)


@pytest.mark.parametrize(("dim", "degree"), [(16, 7), (512, 56), (1000, 24), (2048, 56), (3000, 9)])
def test_nodes_on_disk_lie_in_whole_sectors(plan, dim, degree):
    node = 4 * dim + 4 + 4 * degree
    end, laid = 0, 0  # lay one node after the other
    for _ in range(301):
        room = -end % 4096
        if node > room:
            end += room  # to the next sector
        end += node
        if node > 4096:
            end += -end % 4096
        laid += 1
    end += -end % 4096
    assert plan.diskann_disk(plan.Inputs(dim=dim, degree=degree), laid) == end


@pytest.mark.slow
def test_a_row_of_a_parquet_file_has_the_bytes_that_are_said(plan, tmp_path):
    pytest.importorskip("pyarrow", reason="the extra 'table' is not installed")
    width, sizes = 256, []
    for count in (4_000, 12_000):
        table = EmbeddingTable(
            embeddings=torch.nn.functional.normalize(torch.randn(count, width), dim=1),
            names=tuple(f"site-07/{row:08d}" for row in range(count)),
            cameras=tuple(row % 9 for row in range(count)),
            first_frames=tuple(range(0, 60 * count, 60)),
            last_frames=tuple(range(59, 60 * count, 60)),
            num_frames=tuple(40 + row % 41 for row in range(count)),
            fingerprint="f",
        )
        table.save(tmp_path / "t.parquet")
        sizes.append((tmp_path / "t.parquet").stat().st_size)
    row = (sizes[1] - sizes[0]) / 8_000
    assert plan.Inputs().row_bytes == pytest.approx(row - 4 * width, abs=2)
    assert sizes[0] - 4_000 * row < 2**15


def test_growth_of_re_ranking_goes_through_what_was_measured(plan):
    inputs = plan.Inputs()
    assert plan.rerank_seconds(inputs, 1e5) == pytest.approx(inputs.rerank_100k)
    assert plan.rerank_seconds(inputs, 2e5) == pytest.approx(inputs.rerank_200k)
    assert plan.rerank_seconds(inputs, 50_000) == pytest.approx(6.80, rel=0.15)  # measured too
    for seconds in (0.1, 60, 86_400):
        rows = plan.rows_within(inputs, seconds)
        assert plan.rerank_seconds(inputs, rows) == pytest.approx(seconds)


def test_numbers_are_written_in_the_largest_unit_they_fill(plan):
    assert [plan.size(n) for n in (0, 1023, 2048, 1.5 * 2**30, 2**50, 3_000 * 2**50)] == [
        *("0 KiB", "0.999 KiB", "2 KiB", "1.5 GiB", "1 PiB", "3,000 PiB")
    ]
    assert [plan.duration(s) for s in (0.0015, 1, 90, 7200, 86_400, 3.2e9)] == [
        *("1.5 ms", "1 s", "1.5 min", "2 h", "1 day", "101 years")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ram", "0"], r"ram must be above 0, got 0\.0"),
        (["--tracklets", "5", "nan"], r"tracklets must be above 0, got \(5\.0, nan\)"),
        (["--busy", "1.2"], r"busy must be at most 1, got 1\.2"),
        (["simulate", "--encoders", "0"], "--encoders must be at least 1, got 0"),
        (["simulate", "--days", "0"], "--days must be above 0"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(plan, capsys, arguments, message):
    with pytest.raises(SystemExit):
        plan.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_what_a_shortlist_costs_is_measured(plan, capsys):
    text = printed(plan, capsys, "measure", "--dim", "8")
    assert 0 < float(text.split()[1]) < 5


# --- the queue -----------------------------------------------------------------------------------

FLAT = (1,) * 24
WORK = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=40)


def poisson(queue, rate: float, seconds: float, seed: int = 0) -> list[float]:
    days = seconds / queue.DAY
    return queue.draw_arrivals(rate * queue.DAY, days, random.Random(seed), FLAT)


@given(work=WORK, encoders=st.integers(1, 4))
def test_tracklets_are_served_as_a_clock_that_ticks_serves_them(work, encoders):
    """Look at every second: who has come stands in line, and free encoders take the first."""
    queue: Any = importlib.import_module("encoder_queue")
    arrivals = list(itertools.accumulate(gap for gap, _ in work))
    services = [service for _, service in work]
    line, busy_until, starts = list(range(len(work))), [0] * encoders, []
    for second in range(arrivals[-1] + sum(services) + 1):
        for encoder in range(encoders):
            if line and arrivals[line[0]] <= second and busy_until[encoder] <= second:
                busy_until[encoder] = second + services[line.pop(0)]
                starts.append(second)
    assert queue.serve(arrivals, services, encoders) == starts
    end = arrivals[-1] + 1
    waiting = [sum(a <= t < s for a, s in zip(arrivals, starts, strict=True)) for t in range(end)]
    seen = queue.observe(arrivals, services, encoders, end)
    assert seen.waiting == pytest.approx(sum(waiting) / end)
    assert seen.most_waiting == max(waiting)
    assert seen.left == sum(start > end for start in starts)
    more = queue.serve(arrivals, services, encoders + 1)
    assert all(new <= old for new, old in zip(more, starts, strict=True))


def test_arrivals_follow_the_hours_of_the_day(queue):
    arrivals = queue.draw_arrivals(50_000, 2, random.Random(3))
    assert arrivals == sorted(arrivals)
    assert len(arrivals) == pytest.approx(100_000, abs=5 * math.sqrt(100_000))
    hours = np.bincount([int(moment // queue.HOUR) % 24 for moment in arrivals], minlength=24)
    for hour, share in zip(hours, queue.PROFILE, strict=True):
        expected = 100_000 * share / sum(queue.PROFILE)
        assert hour == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_lengths_are_drawn_with_the_mean_that_is_asked_for(queue):
    services = queue.draw_services(50_000, 2.0, 0.9, random.Random(1))
    assert statistics.fmean(services) == pytest.approx(2.0, rel=0.03)
    assert statistics.median(services) == pytest.approx(2 * math.exp(-0.405), rel=0.03)
    assert queue.draw_services(3, 2.0, 0.0, random.Random(1)) == [2.0] * 3


def test_one_encoder_makes_wait_as_pollaczek_and_khinchine_say(queue):
    """M/D/1: the mean wait is load x service / (2 (1 - load))."""
    arrivals = poisson(queue, 0.8, 200_000)
    starts = queue.serve(arrivals, [1.0] * len(arrivals), 1)
    waits = [start - arrival for start, arrival in zip(starts, arrivals, strict=True)]
    assert statistics.fmean(waits) == pytest.approx(0.8 / (2 * 0.2), rel=0.05)


def test_three_encoders_make_wait_as_erlang_says(queue):
    """M/M/3 with a load of 2.4: the mean wait is C / (3 - 2.4), C the share that waits."""
    source, load, encoders = random.Random(2), 2.4, 3
    arrivals = poisson(queue, load, 80_000)
    services = [-math.log(1 - source.random()) for _ in arrivals]
    waiting = load**encoders / math.factorial(encoders) / (1 - load / encoders)
    share = waiting / (sum(load**n / math.factorial(n) for n in range(encoders)) + waiting)
    starts = queue.serve(arrivals, services, encoders)
    waits = [start - arrival for start, arrival in zip(starts, arrivals, strict=True)]
    assert statistics.fmean(waits) == pytest.approx(share / (encoders - load), rel=0.1)
    assert statistics.fmean(wait > 1e-9 for wait in waits) == pytest.approx(share, rel=0.05)


def test_encoders_are_busy_as_arrivals_times_service_over_their_number(queue):
    """And by Little's law, as many wait as come in the mean wait."""
    end, rate, service, encoders = 50_000, 1.5, 1.2, 3
    arrivals = poisson(queue, rate, end)
    seen = queue.observe(arrivals, [service] * len(arrivals), encoders, end)
    assert seen.busy == pytest.approx(rate * service / encoders, rel=0.02)
    waited = statistics.fmean(seen.delays) - service
    assert seen.waiting == pytest.approx(rate * waited, rel=0.03)


def test_a_backlog_grows_where_too_few_encode_and_only_there(queue):
    end, rate, service = 100_000, 1.0, 2.1
    arrivals = poisson(queue, rate, end)
    services = [service] * len(arrivals)
    few = queue.observe(arrivals, services, 2, end)
    assert few.left == pytest.approx((rate - 2 / service) * end, rel=0.1)
    assert few.busy == pytest.approx(1.0, abs=1e-3)
    enough = queue.observe(arrivals, services, 3, end)
    assert enough.left < 20
    assert enough.most_waiting < 100


@pytest.mark.slow
def test_the_number_of_encoders_that_suffices_is_the_least(plan, capsys):
    arguments = ("simulate", "--simulated-per-day", "60000", "--days", "1", "--spread", "0")
    table = tables_of(printed(plan, capsys, *arguments))[1]
    row = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert row[0] == "60,000"
    enough = int(row[3])
    text = printed(plan, capsys, *arguments, "--encoders", f"{enough - 1}", f"{enough}")
    fewer, these = (line.split("|")[-3].strip() for line in tables_of(text)[0].splitlines()[2:])
    assert fewer.endswith(("min", "h"))
    assert these == row[4]
    hopeless = tables_of(printed(plan, capsys, *arguments, "--delay", "0.1"))[1]
    assert hopeless.count("no number") == 3
