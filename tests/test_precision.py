"""The choice of a floating-point type: by what is measured, once for each machine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tfclip import TFCLIP, precision


@pytest.fixture
def measured(monkeypatch, tmp_path) -> list[tuple[int, int]]:
    """A cache of its own, and a machine on which bfloat16 is three times as fast."""
    calls = []

    def measure(device: torch.device, width: int, num_tokens: int) -> dict[str, float]:
        calls.append((width, num_tokens))
        return {"float32": 0.3, "bfloat16": 0.1}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "measure", measure)
    return calls


@pytest.mark.parametrize(
    ("seconds", "dtype"),
    [
        ({"float32": 1.2, "bfloat16": 1.0}, torch.bfloat16),
        ({"float32": 1.19, "bfloat16": 1.0}, torch.float32),
        ({"float32": 1.0, "bfloat16": 5.0}, torch.float32),
        ({"float32": 5.0, "bfloat16": 1.0, "float16": 0.9}, torch.bfloat16),
        ({"float32": 5.0, "bfloat16": 4.9, "float16": 0.9}, torch.float16),
        ({"float32": 1.0}, torch.float32),
    ],
)
def test_a_reduced_type_is_chosen_only_when_it_is_clearly_faster(seconds, dtype):
    assert precision.pick(seconds) == dtype


def test_a_machine_is_measured_once_for_each_size(measured, tiny_model):
    assert precision.choose_dtype(tiny_model) == torch.bfloat16
    assert precision.choose_dtype(tiny_model) == torch.bfloat16
    assert measured == [(64, 9)]
    precision.choose_dtype(TFCLIP.from_pretrained("tfclip-tiny"))
    assert measured == [(64, 9), (128, 33)]
    known = json.loads(precision.cache_file().read_text())
    assert len(known) == 2
    assert all(torch.__version__ in key for key in known)


def test_what_was_measured_before_decides(measured, tiny_model):
    precision.choose_dtype(tiny_model)
    path = precision.cache_file()
    path.write_text(path.read_text().replace("0.3", "0.05"))
    assert precision.choose_dtype(tiny_model) == torch.float32
    assert len(measured) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        pytest.param("[" * 100_000, id="deep"),
        '{"KEY": 3}',
        '{"KEY": {"bfloat16": 0.1}}',
        '{"KEY": {"float32": "fast"}}',
    ],
)
def test_a_damaged_cache_is_measured_anew_and_mended(measured, tiny_model, text):
    precision.choose_dtype(tiny_model)
    path = precision.cache_file()
    (key,) = json.loads(path.read_text())
    path.write_text(text.replace("KEY", key))
    assert precision.choose_dtype(tiny_model) == torch.bfloat16
    assert len(measured) == 2
    assert json.loads(path.read_text()) == {key: {"float32": 0.3, "bfloat16": 0.1}}


def test_where_nothing_can_be_written_it_still_chooses(measured, tiny_model, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert precision.choose_dtype(tiny_model) == torch.bfloat16
    assert len(measured) == 1


def test_writers_at_once_leave_a_whole_file(tmp_path):
    path = tmp_path / "speed.json"

    def remember(key: str) -> None:
        for _ in range(20):
            precision._remember(path, key, {"float32": 0.5})

    with ThreadPoolExecutor() as pool:
        list(pool.map(remember, "abc"))
    assert [child.name for child in tmp_path.iterdir()] == ["speed.json"]
    assert precision._read(path)


def test_measuring_times_each_type_and_leaves_the_random_state():
    state = torch.random.get_rng_state()
    seconds = precision.measure(torch.device("cpu"), 64, 9)
    assert list(seconds) == ["float32", "bfloat16"]
    assert all(0 < value < 60 for value in seconds.values())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_is_loaded_in_the_type_that_is_fast(measured):
    assert TFCLIP.from_pretrained("tfclip-tiny", dtype="auto").dtype == torch.bfloat16
    assert TFCLIP.from_pretrained("tfclip-tiny").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", 16])
def test_a_dtype_that_is_none_is_refused(dtype):
    with pytest.raises(
        TypeError, match=r"dtype must be a torch.dtype, 'auto', 'int8' or None, got"
    ):
        TFCLIP.from_pretrained("tfclip-tiny", dtype=dtype)
