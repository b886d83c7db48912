"""Say what a number of tracklets costs: machines, bytes, indices, re-ranking; and simulate a day.

    python examples/plan_scale.py                       # the tables of docs/scaling.md
    python examples/plan_scale.py --dim 512 --ram 64 --tracklets 5000000
    python examples/plan_scale.py simulate              # cameras that send, encoders that follow
    python examples/plan_scale.py simulate --simulated-per-day 20000 --encoders 1 2
    python examples/plan_scale.py measure               # what re-ranking a shortlist costs here

Every number that goes in is a field of ``Inputs``, with where it comes from, and has a flag of its
name. What comes out is arithmetic and a queue; nothing but Python's own library is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from encoder_queue import DAY, HOUR, PROFILE, Outcome, draw_arrivals, draw_services, observe

GIB = 2**30

Cell = Callable[[float], str]  # a number of tracklets to what a table says of it
Work = tuple[list[float], list[float]]  # when tracklets come, and how long each takes

# What makers state for dense bfloat16 products, operations a second.
STATED_PEAKS = {"L4": 121e12, "A100": 312e12, "H100": 989e12}


def given(default: Any, source: str) -> Any:
    """Return a field with its default and where that comes from."""
    return dataclasses.field(default=default, metadata={"source": source})


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the tables are computed from: measured numbers, sizes that you choose, assumptions.

    Raises:
        ValueError: A number is not above 0, or a share above 1.
    """

    tracklets: tuple[float, ...] = given((10**6, 10**8, 10**10), "chosen: tracklets kept")
    tracklets_per_day: float = given(10**6, "chosen: new ones")
    simulated_per_day: float = given(10**5, "chosen: new ones in `simulate`")
    frames_per_tracklet: float = given(60.0, "mean of MARS, 59.5")
    frames_per_second: float = given(
        34.0, "measured, ViT-B/16, 2 cores, `--dtype auto`: `benchmark_encode.py rates`"
    )
    float32_frames_per_second: float = given(15.3, "measured in the same run, float32")
    int8_frames_per_second: float = given(49.2, "measured in the same run, `--dtype int8`")
    files_per_second: float = given(
        3_227.0, "measured, JPEG of 256 x 128, one core: `benchmark_pipeline.py decode`"
    )
    operations_per_frame: float = given(
        23.96e9, "counted: `products_per_frame` of `benchmark_encode.py`"
    )
    gpu_utilisation: float = given(0.35, "ASSUMED share of a GPU's stated peak; none was measured")
    busy: float = given(0.7, "chosen: how busy machines may be in the mean")
    dim: int = given(2048, "numbers in a vector of the paper's model")
    row_bytes: float = given(
        20.0, "measured: what a row of `.parquet` has beside its vector; names of 16 letters"
    )
    code_bytes: int = given(128, "chosen: bytes of a product-quantised vector")
    links: int = given(32, "HNSW: M of this library's FAISS index")
    degree: int = given(56, "DiskANN: links of a node, Milvus's default")
    disk_share: float = given(
        0.225, "DiskANN: of the vectors, in memory; Milvus's defaults, codes 0.125 and cache 0.1"
    )
    ram: float = given(256.0, "chosen: GiB of memory in a machine")
    filled: float = given(0.7, "chosen: share of it that vectors and index may take")
    scan_bytes: float = given(
        22.5e9, "measured, exact search, one thread, one by one: `benchmark_gallery.py`"
    )
    rerank_100k: float = given(
        22.2, "measured, seconds, 1,000 queries x 100,000, 2 cores: `benchmark_rerank.py growth`"
    )
    rerank_200k: float = given(83.6, "the same, 200,000")
    rerank_row_bytes: float = given(13_800.0, "of the same two runs: memory for each gallery row")
    shortlist_seconds: float = given(
        0.0066, "measured, one query among 100, one core: `plan_scale.py measure`"
    )
    sites: int = given(100, "chosen: places that are searched apart")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = value if isinstance(value, tuple) else (value,)
            if not all(0 < one < math.inf for one in values):
                raise ValueError(f"{field.name} must be above 0, got {value}")
        for name in ("gpu_utilisation", "busy", "filled", "disk_share"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, got {getattr(self, name)}")


# --- arithmetic ----------------------------------------------------------------------------------


def gpu_rate(inputs: Inputs, peak: float) -> float:
    """Estimate frames a second of a GPU from its stated peak."""
    return peak * inputs.gpu_utilisation / inputs.operations_per_frame


def clusters(count: float) -> int:
    """Return how many lists an IVF index has in this library."""
    return round(4 * math.sqrt(count))


def flat_bytes(inputs: Inputs, count: float) -> float:
    """Count vectors as they are, and an id of 8 bytes for each."""
    return count * (4 * inputs.dim + 8)


def hnsw_bytes(inputs: Inputs, count: float) -> float:
    """Count vectors, ids, links of 4 bytes (2 M below, M / (M - 1) above in the mean), 12 more."""
    m = inputs.links
    return flat_bytes(inputs, count) + count * (4 * (2 * m + m / (m - 1)) + 12)


def ivf_bytes(inputs: Inputs, count: float, vector: float | None = None) -> float:
    """Count vectors of some bytes, ids, and centroids in float32."""
    vector = 4 * inputs.dim if vector is None else vector
    return count * (vector + 8) + clusters(count) * (4 * inputs.dim + 8)


def sq8_bytes(inputs: Inputs, count: float) -> float:
    """Count an IVF with a byte for each number, and the range of each."""
    return ivf_bytes(inputs, count, inputs.dim) + 2 * 4 * inputs.dim


def pq_bytes(inputs: Inputs, count: float) -> float:
    """Count an IVF with codes, and 256 centroids for each part of a vector."""
    return ivf_bytes(inputs, count, inputs.code_bytes) + 256 * 4 * inputs.dim


def diskann_memory(inputs: Inputs, count: float) -> float:
    """Count codes to find the way by, and a cache of nodes."""
    return count * 4 * inputs.dim * inputs.disk_share


def diskann_disk(inputs: Inputs, count: float) -> float:
    """Count sectors of 4 KiB; a node, a vector with its links, lies in no more than it must."""
    node = 4 * inputs.dim + 4 * (1 + inputs.degree)
    if node > 4096:
        return count * 4096 * math.ceil(node / 4096)
    return math.ceil(count / (4096 // node)) * 4096


INDICES: dict[str, Callable[[Inputs, float], float]] = {
    "flat": flat_bytes,
    "HNSW": hnsw_bytes,
    "IVF": ivf_bytes,
    "IVF-SQ8": sq8_bytes,
    "IVF-PQ": pq_bytes,
    "DiskANN, memory": diskann_memory,
}


def machines(inputs: Inputs, taken: float) -> int:
    """Return how many machines hold so many bytes in memory, once."""
    return math.ceil(taken / (inputs.ram * GIB * inputs.filled))


def scan_seconds(inputs: Inputs, rows: float) -> float:
    """Return the seconds in which one core compares a query with so many vectors, as read."""
    return rows * 4 * inputs.dim / inputs.scan_bytes


def growth(inputs: Inputs) -> tuple[float, float]:
    """Return a and b of a G + b G^2, the seconds of re-ranking, through the two measured runs."""
    square = (inputs.rerank_200k - 2 * inputs.rerank_100k) / (2 * 10**10)
    return (inputs.rerank_100k - square * 10**10) / 10**5, square


def rerank_seconds(inputs: Inputs, rows: float) -> float:
    """Return the seconds of re-ranking 1,000 queries among a whole gallery."""
    linear, square = growth(inputs)
    return linear * rows + square * rows**2


def rows_within(inputs: Inputs, seconds: float) -> float:
    """Return the largest gallery that is re-ranked in a time: ``rerank_seconds`` turned round."""
    linear, square = growth(inputs)
    return (math.sqrt(linear**2 + 4 * square * seconds) - linear) / (2 * square)


# --- tables --------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], last: str = "---:") -> str:
    """Return a Markdown table, whose columns but the first are to the right."""
    rule = ["---", *["---:"] * (len(heads) - 2), last]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def number(value: float) -> str:
    """Write a number with three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def rounded(value: float) -> str:
    """Write a number with three digits that mean something."""
    return number(float(f"{value:.3g}"))


def scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    """Write a value in the largest unit that it fills."""
    name, unit = next((u for u in units if value >= u[1]), units[-1])
    shown = number(value / unit)
    return f"{shown} {name[:-1] if shown == '1' and name in ('days', 'years') else name}"


def size(taken: float) -> str:
    """Write bytes."""
    names = ("PiB", "TiB", "GiB", "MiB", "KiB")
    return scaled(taken, [(name, 2.0 ** (10 * (5 - i))) for i, name in enumerate(names)])


def duration(seconds: float) -> str:
    """Write a time."""
    units = (("years", 365 * DAY), ("days", DAY), ("h", HOUR), ("min", 60), ("s", 1), ("ms", 1e-3))
    return scaled(seconds, units)


def input_table(inputs: Inputs) -> str:
    """Show all that goes in."""
    rows = []
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        values = value if isinstance(value, tuple) else (value,)
        shown = ", ".join(f"{v:,.0f}" if v == round(v) else f"{v:g}" for v in values)
        rows.append((f"`--{field.name.replace('_', '-')}`", shown, field.metadata["source"]))
    return table(("flag", "value", "where from"), rows, last="---")


def encoding_table(inputs: Inputs) -> str:
    """Show what an encoder does in a day, and how many a day's tracklets need."""
    fewer = min(8.0, inputs.frames_per_tracklet)
    rates = [
        ("2 cores, float32", inputs.float32_frames_per_second, inputs.frames_per_tracklet),
        ("2 cores, `--dtype auto`", inputs.frames_per_second, inputs.frames_per_tracklet),
        ("the same, `--max-frames 8`", inputs.frames_per_second, fewer),
        ("2 cores, `--dtype int8`", inputs.int8_frames_per_second, inputs.frames_per_tracklet),
    ]
    for name, peak in STATED_PEAKS.items():
        rates.append((f"{name}, an estimate", gpu_rate(inputs, peak), inputs.frames_per_tracklet))
    rows = []
    for name, rate, length in rates:
        load = inputs.tracklets_per_day * length / (rate * DAY)
        cells = (rate, rate * DAY, rate * DAY / length, rate / inputs.files_per_second)
        rows.append((name, *map(rounded, cells), number(math.ceil(load / inputs.busy))))
    heads = ("encoder", "frames/s", "frames a day", "tracklets a day", "cores that read")
    return table((*heads, f"for {number(inputs.tracklets_per_day)} a day"), rows)


def per_count(inputs: Inputs, head: str, rows: Sequence[tuple[str, Cell]]) -> str:
    """Return a table with a column for each number of tracklets."""
    counts = inputs.tracklets
    cells = [(name, *(cell(count) for count in counts)) for name, cell in rows]
    return table((head, *map(number, counts)), cells)


def vector_table(inputs: Inputs) -> str:
    """Show the bytes of the vectors alone."""
    dim, code = inputs.dim, inputs.code_bytes
    rows: list[tuple[str, Cell]] = [
        ("float32", lambda n: size(n * 4 * dim)),
        ("float16", lambda n: size(n * 2 * dim)),
        ("8 bits (SQ8)", lambda n: size(n * dim)),
        (f"product-quantised, {code} bytes", lambda n: size(n * code)),
        ("a `.parquet` of `tfclip encode`", lambda n: size(n * (4 * dim + inputs.row_bytes))),
    ]
    return per_count(inputs, "vectors as", rows)


def index_table(inputs: Inputs) -> str:
    """Show the bytes of indices, and machines that hold them."""

    def held(taken: float) -> str:
        return f"{size(taken)}, {number(machines(inputs, taken))}"

    rows: list[tuple[str, Cell]] = [
        (name, lambda n, taken=taken: held(taken(inputs, n))) for name, taken in INDICES.items()
    ]
    rows.append(("DiskANN, on SSD", lambda n: size(diskann_disk(inputs, n))))
    return per_count(inputs, f"index: memory, machines of {number(inputs.ram)} GiB", rows)


def search_table(inputs: Inputs) -> str:
    """Show the time of comparing everything, and of re-ranking everything."""
    all_compared = "one query, all compared, one core"
    few_re_ranked = "one query, its 100 nearest re-ranked, one core"
    rows: list[tuple[str, Cell]] = [
        (all_compared, lambda n: duration(scan_seconds(inputs, n))),
        ("1,000 queries, all re-ranked, 2 cores", lambda n: duration(rerank_seconds(inputs, n))),
        ("the same, memory", lambda n: size(n * inputs.rerank_row_bytes)),
        (few_re_ranked, lambda n: duration(inputs.shortlist_seconds)),
    ]
    return per_count(inputs, "work", rows)


def budget_table(inputs: Inputs) -> str:
    """Show the largest gallery that is re-ranked as a whole in a time."""
    rows = []
    for seconds in (1, 60, HOUR, DAY):
        count = rows_within(inputs, seconds)
        cells = (rounded(count), size(count * inputs.rerank_row_bytes))
        rows.append((duration(seconds), *cells))
    return table(("1,000 queries re-ranked in", "largest gallery", "memory"), rows)


def window_table(inputs: Inputs) -> str:
    """Show what a search in a part of time and place costs."""
    per_day, sites = inputs.tracklets_per_day, inputs.sites
    peak = max(PROFILE) / sum(PROFILE)
    parts = {
        "the busiest hour, one site": per_day * peak / sites,
        "a day, one site": per_day / sites,
        "the busiest hour, everywhere": per_day * peak,
        "a day, everywhere": per_day,
        "30 days, everywhere": 30 * per_day,
    }
    rows = []
    for name, count in parts.items():
        cells = (size(flat_bytes(inputs, count)), duration(scan_seconds(inputs, count)))
        rows.append((name, rounded(count), *cells, duration(rerank_seconds(inputs, count))))
    heads = ("partition", "tracklets", "flat", "one query, one core", "1,000 queries re-ranked")
    return table(heads, rows)


def plan(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of every table."""
    yield "What goes in", input_table(inputs)
    yield "What one encoder does", encoding_table(inputs)
    yield "What vectors take", vector_table(inputs)
    yield "What an index takes", index_table(inputs)
    yield "What a search takes", search_table(inputs)
    yield "How far re-ranking everything goes", budget_table(inputs)
    yield "What a partition takes", window_table(inputs)


# --- simulation ----------------------------------------------------------------------------------


def draw_day(inputs: Inputs, per_day: float, options: argparse.Namespace) -> Work:
    """Draw what encoders have to do."""
    source = random.Random(options.seed)
    arrivals = draw_arrivals(per_day, options.days, source)
    mean = inputs.frames_per_tracklet / inputs.frames_per_second
    return arrivals, draw_services(len(arrivals), mean, options.spread, source)


def load_of(inputs: Inputs, per_day: float) -> float:
    """Return how many encoders would be busy all day."""
    return per_day * inputs.frames_per_tracklet / (inputs.frames_per_second * DAY)


def queue_table(inputs: Inputs, options: argparse.Namespace) -> str:
    """Show how several numbers of encoders do."""
    per_day = inputs.simulated_per_day
    work = draw_day(inputs, per_day, options)
    least = math.ceil(load_of(inputs, per_day))
    rows = []
    for encoders in options.encoders or range(max(1, least - 1), least + 4):
        seen = observe(*work, encoders, options.days * DAY)
        delays = (seen.delay(0.5), seen.delay(0.95), seen.delay(1.0))
        counts = (f"{seen.most_waiting:,}", f"{seen.left:,}")
        rows.append((f"{encoders}", f"{100 * seen.busy:.0f} %", *counts, *map(duration, delays)))
    heads = ("encoders", "busy", "most waiting", "waiting at the end", "delay, median", "95 %")
    return table((*heads, "longest"), rows)


def find_enough(work: Work, least: int, options: argparse.Namespace) -> tuple[int, Outcome]:
    """Return the least number of encoders that are fast enough, or with whom nobody waits."""
    encoders = least
    while True:
        seen = observe(*work, encoders, options.days * DAY)
        if seen.delay(0.95) <= options.delay or not seen.waiting:
            return encoders, seen
        encoders += 1


def need_table(inputs: Inputs, options: argparse.Namespace) -> str:
    """Show how many encoders keep nearly all delays short."""
    rows = []
    for per_day in (inputs.simulated_per_day * share for share in (0.25, 0.5, 1.0)):
        load = load_of(inputs, per_day)
        work = draw_day(inputs, per_day, options)
        encoders, seen = find_enough(work, math.ceil(load), options)
        peak = load * max(PROFILE) * len(PROFILE) / sum(PROFILE)
        delay = seen.delay(0.95)
        enough = f"{encoders}" if delay <= options.delay else "no number"
        rows.append((number(per_day), number(load), number(peak), enough, duration(delay)))
    heads = ("tracklets a day", "load", "in the busiest hour", "encoders that suffice")
    return table((*heads, "their delay, 95 %"), rows)


def simulate(inputs: Inputs, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of every table."""
    yield "Encoders for a day", queue_table(inputs, options)
    yield f"When 95 % are to be done within {duration(options.delay)}", need_table(inputs, options)


# --- measuring -----------------------------------------------------------------------------------


def measure(inputs: Inputs, rounds: int = 50) -> float:
    """Return the median processor seconds of re-ranking one query's 100 nearest, on one core."""
    import torch

    from tfclip.functional import k_reciprocal_rerank

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(101, inputs.dim) + 1, dim=1)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()  # what others do on the machine does not count
        k_reciprocal_rerank(rows[:1], rows[1:])
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def parse(arguments: Sequence[str] | None) -> tuple[Inputs, argparse.Namespace]:
    """Read the command line: what goes in, and what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("what", nargs="?", choices=("tables", "simulate", "measure"), default="tables")
    fields = dataclasses.fields(Inputs)
    for field in fields:
        kind = int if field.type == "int" else float
        several = "+" if isinstance(field.default, tuple) else None
        text = field.metadata["source"].replace("%", "%%")
        flag = f"--{field.name.replace('_', '-')}"
        add(flag, type=kind, nargs=several, default=field.default, help=text)
    add("--encoders", type=int, nargs="+", help="simulate these numbers of encoders")
    add("--days", type=float, default=2.0, help="simulated (2)")
    add("--delay", type=float, default=60.0, help="seconds that 95 %% are to be done within (60)")
    add("--spread", type=float, default=0.9, help="of lengths, log-normal; 0: all alike (0.9)")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if min(options.encoders or [1]) < 1:
        parser.error(f"--encoders must be at least 1, got {min(options.encoders)}")
    if options.days <= 0 or options.spread < 0:
        parser.error("--days must be above 0, and --spread 0 or more")
    values = {field.name: getattr(options, field.name) for field in fields}
    try:
        return Inputs(**{**values, "tracklets": tuple(options.tracklets)}), options
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print tables."""
    inputs, options = parse(arguments)
    if options.what == "measure":
        print(f"--shortlist-seconds {measure(inputs):.4f}")
        return
    tables = plan(inputs) if options.what == "tables" else simulate(inputs, options)
    for title, text in tables:
        print(f"{title}\n\n{text}\n")


if __name__ == "__main__":
    main()
