"""No export that differs from its model passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.export.exports import damage_onnx, embed, need_onnx, pixels
from tfclip import TFCLIP
from tfclip.errors import ExportError
from tfclip.export import export_model, parity
from tfclip.preprocess import Preprocess


def test_the_gate_refuses_weights_that_changed_after_the_export(tiny, tmp_path, damaged):
    need_onnx()
    damaged(damage_onnx)
    path = tmp_path / "model.onnx"
    path.write_text("what stood there before")
    with pytest.raises(ExportError, match=r"model\.onnx is not written: .*less than 0\.9999 \("):
        export_model(tiny, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "what stood there before"


@pytest.mark.slow
def test_a_lesser_cosine_can_be_accepted_by_hand(tiny, tmp_path, damaged):
    need_onnx()
    damaged(damage_onnx)
    report = export_model(tiny, tmp_path / "model.onnx", min_cosine=0.5)
    assert 0.5 <= report.cosine < 0.9999
    assert report.least_cosine == 0.5
    assert (tmp_path / "model.onnx").exists()


class Faulty:
    """An export that answers what it is told to."""

    def __init__(self, model: TFCLIP, answer):
        self.description = {"cameras": {"input": False}, "frames": {"normalize": False}}
        self.model, self.answer = model, answer

    def __call__(self, frames, cameras=None):
        return self.answer(embed(self.model, frames))


def gate(model, answer, least_cosine):
    exported: Any = Faulty(model, answer)
    return parity.check_parity(model, exported, least_cosine=least_cosine, name="model.onnx")


def test_the_gate_passes_what_is_equal(tiny):
    trials, nearest = gate(tiny, lambda embedding: embedding, 0.9999)
    assert min(trial.cosine for trial in trials) == pytest.approx(1, abs=1e-6)
    assert max(trial.difference for trial in trials) < 1e-6
    assert nearest < 0.999


def test_the_gate_refuses_answers_that_are_always_the_same_however_alike_people_are(tiny):
    constant = embed(tiny, pixels(1, 8))[0]
    with pytest.raises(ExportError, match="8 of 9 drawn people are nearer to another"):
        gate(tiny, lambda embedding: np.tile(constant, (len(embedding), 1)), -1)


def test_the_gate_refuses_answers_in_another_order(tiny):
    with pytest.raises(ExportError, match="its embeddings are not the model's"):
        gate(tiny, lambda embedding: embedding[::-1].copy(), 0.9999)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_the_gate_refuses_what_is_no_direction(tiny, value):
    with pytest.raises(ExportError, match="its embeddings are not the model's"):
        gate(tiny, lambda embedding: np.full_like(embedding, value), 0.9999)


def test_frames_normalised_twice_do_not_pass(tiny):
    """The commonest mistake of those who use exports: the gate would have seen it."""

    class Twice(Faulty):
        def __call__(self, frames, cameras=None):
            normalised = Preprocess(tiny.config).normalize(torch.from_numpy(frames))
            with torch.inference_mode():
                again = Preprocess(tiny.config).normalize((normalised * 255).to(torch.uint8))
                return tiny(again).embedding.numpy()

    exported: Any = Twice(tiny, None)
    with pytest.raises(ExportError, match="its embeddings are not the model's"):
        parity.check_parity(tiny, exported, least_cosine=0.9999, name="model.onnx")
