"""The model card."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from tests.hub.saved_models import CONFIG, make_model
from tfclip import hub
from tfclip.card import model_card
from tfclip.model import TFCLIP


def test_the_card_is_valid_and_says_what_the_hub_needs(saved: Path):
    metadata = ModelCard.load(saved / "README.md").data.to_dict()
    assert {"person-re-identification", "arxiv:2312.09627"} <= set(metadata.pop("tags"))
    assert metadata == {
        "library_name": "tfclip",
        "pipeline_tag": "image-feature-extraction",
        "license": "mit",
    }


def test_the_slices_of_the_card_are_those_of_the_embedding(saved: Path):
    model = make_model()
    output = model(torch.rand(1, 2, 3, 32, 16))
    rows = re.findall(r"`\[(\d+):(\d+)\]` \| (\w+)", (saved / "README.md").read_text())
    assert [part for *_, part in rows] == list(CONFIG.descriptor)
    for start, stop, part in rows:
        expected = getattr(output, part)
        assert torch.equal(output.embedding[:, int(start) : int(stop)], expected)


def test_the_card_calls_random_weights_untrained_and_no_others():
    widths = {"appearance": 64, "projected": 32, "temporal": 64}
    trained = CONFIG.replace(provenance={"converted from": "best_model.pth.tar", "sha256": "abc"})
    assert "**Untrained.**" in model_card(CONFIG, widths, "x")
    card = model_card(trained, widths, "x")
    assert "ntrained" not in card
    assert "- converted from: best_model.pth.tar\n- sha256: abc\n" in card
    assert "Not stated." in model_card(CONFIG.replace(provenance={}), widths, "x")


def test_provenance_cannot_break_the_card():
    base = CONFIG.replace(provenance={"base_model": "org/base", "note": "a\n---\n# b: [c"})
    card = ModelCard(model_card(base, {"appearance": 1, "projected": 1, "temporal": 1}, "x"))
    assert card.data.to_dict()["base_model"] == "org/base"
    assert "- note: a --- # b: [c\n" in card.text


def test_a_readme_that_is_there_stays(model: TFCLIP, tmp_path: Path):
    (tmp_path / "README.md").write_text("mine")
    hub.save(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    hub.load(TFCLIP, tmp_path)
