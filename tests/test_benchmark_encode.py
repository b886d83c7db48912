"""The benchmark's plain reference path is the library's model, and its count of work is right."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.example_scripts import load_example
from tfclip import TFCLIP, TFCLIPConfig


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_example("benchmark_encode")


def test_the_reference_path_is_the_model(benchmark, tiny_model):
    frames = torch.randn(2, 4, 3, 64, 32)
    with torch.no_grad():
        expected = tiny_model(frames).embedding
        found = benchmark.reference(tiny_model, frames)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_count_of_products_is_that_of_the_plain_path(benchmark):
    config = TFCLIPConfig()
    with torch.device("meta"):
        model = TFCLIP(config).eval()
        frames = torch.empty(1, 8, 3, 256, 128)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            benchmark.reference(model, frames)
    # Beyond the least: all tokens projected, the last layer on all tokens, the messages' products.
    extra = 2 * 129 * 768 * 512 + 2 * 130 * 4 * 768**2 + 2 * 5 * 768**2 + 4 * 8 * 768
    counted = benchmark.products_per_frame(config) + extra
    assert counter.get_total_flops() / 8 == pytest.approx(counted, rel=1e-6)


def test_without_a_gpu_it_says_so(benchmark, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device is here, so nothing was measured"):
        benchmark.main(["rates", "--device", "cuda"])


def test_accuracy_runs_and_float32_is_exact(benchmark, capsys):
    benchmark.main(["accuracy", "--people", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| float32")]
    assert rows == ["| float32 | 100.00 | 100.00 | 1.00000 | 1.00000 |"]
