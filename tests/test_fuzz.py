"""Every file that is parsed, changed at random: only what the documentation says is raised."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz_targets import TARGETS
from tfclip.config import TFCLIPConfig
from tfclip.data import read_csv, read_prid2011
from tfclip.errors import ConfigError, TableError

ROOT = Path(__file__).parents[1]
SECONDS, SEED = 60, 0

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
CELLS = st.sampled_from(["a.png", "b.png", "7", "0", "-1", "1.5", "nan", "", "../a.png", "9" * 400])
COLUMNS = ["tracklet", "path", "frame", "person", "camera", "left", "top", "width", "height"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the fuzzer forks")
def test_a_minute_of_fuzzing_finds_nothing() -> None:
    command = [sys.executable, "tests/fuzz.py", "--seconds", str(SECONDS), "--seed", str(SEED)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    assert f"seed {SEED}," in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the fuzzer forks")
def test_the_fuzzer_notices_what_it_looks_for(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        """
import sys, time
sys.path.insert(0, ".")
from tests import fuzz, fuzz_targets
from tfclip.errors import TableError

kept = []

class Torn(TableError):
    __str__ = Exception.__str__  # which escapes no line break

def read(folder, name):
    kind = sum((folder / name).read_bytes()) % 8
    if kind == 0:
        raise KeyError("not documented")
    if kind == 1:
        (folder.parent / "elsewhere" / "escaped").write_text("x")
    if kind == 2:
        import os
        os.abort()
    if kind == 3:
        kept.append(b"x" * 2**29)
    if kind == 4:
        time.sleep(5)
    if kind == 5:
        raise Torn("two\\nlines")
    if kind == 6:
        import subprocess
        subprocess.run(["true"])

def make(folder):
    return {"file": b"12345673"}  # its kind is 7

fuzz_targets.TARGETS = fuzz.TARGETS = {
    "broken": fuzz_targets.Target(make, read, (TableError,))
}
sys.exit(fuzz.main("--inputs 40 --most 60 --limit 2".split()))
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for kind in (
        "KeyError: 'not documented'",
        "reached beyond its folder: open",
        "the process ended with status -6",
        "memory grew by",
        "Timeout (0:00:02)!",
        "message of several lines",
        "reached beyond its folder: subprocess.Popen",
    ):
        assert kind in done.stdout, kind


@given(st.dictionaries(st.sampled_from(sorted(TFCLIPConfig().to_dict())) | st.text(), JSON))
def test_any_json_object_is_a_configuration_or_refused(values: dict[str, Any]) -> None:
    try:
        config = TFCLIPConfig.from_json(json.dumps(values))
    except ConfigError:
        return
    assert TFCLIPConfig.from_json(config.to_json()) == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.lists(st.sampled_from(COLUMNS), min_size=2, unique=True) | st.just(COLUMNS),
    rows=st.lists(st.lists(CELLS | st.text(max_size=8), max_size=10), max_size=6),
)
def test_any_table_is_read_or_refused(
    tmp_path: Path, columns: list[str], rows: list[list[str]]
) -> None:
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 8)).save(tmp_path / "b.png")
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    path = tmp_path / "table.csv"
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    try:
        tracklets = read_csv(path)
    except TableError:
        return
    assert sum(len(tracklet.frames) for tracklet in tracklets) == len([r for r in rows if r])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits=JSON | st.lists(st.dictionaries(st.sampled_from(["train", "test", "query"]), JSON)))
def test_any_json_is_splits_or_refused(tmp_path: Path, splits: Any) -> None:
    for camera in ("cam_a", "cam_b"):
        folder = tmp_path / "prid_2011" / "multi_shot" / camera / "person_0001"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "0001.png").touch()
    (tmp_path / "splits_prid2011.json").write_text(json.dumps(splits))
    with pytest.raises(TableError):  # one person cannot be in both halves
        read_prid2011(tmp_path)


@pytest.mark.parametrize("name", ["folders.txt", "mars.txt", "market.txt"])
def test_a_list_without_names_leaves_the_next_one_readable(tmp_path: Path, name: str) -> None:
    target = TARGETS["names"]
    samples = target.make(tmp_path)
    for empty in (b"", b"/\n", b".\n"):
        (tmp_path / name).write_bytes(empty)
        with contextlib.suppress(TableError):
            target.read(tmp_path, name)
        (tmp_path / name).write_bytes(samples[name])
        target.read(tmp_path, name)  # and is not refused
