"""One command from the authors' checkpoint to what the Hub gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from tests.example_scripts import load_example
from tests.hub.hub_server import taken_for_the_hub
from tests.recorded import shallow_checkpoint
from tfclip import TFCLIP, hub
from tfclip.card import model_card
from tfclip.checkpoints import file_sha256
from tfclip.config import TFCLIPConfig
from tfclip.data import model_fingerprint
from tfclip.errors import TableError

script = load_example("release_weights")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The recorded checkpoint of the reference, with one block of its twelve."""
    torch.save(shallow_checkpoint(), tmp_path / "best_model.pth.tar")
    return tmp_path / "best_model.pth.tar"


def run(checkpoint: Path, *more: str) -> int:
    out = checkpoint.parent / "out"
    size = ["--frame-size", "64", "32"]
    return script.main([str(checkpoint), "org/mars", "--out", str(out), *size, *more])


def report_of(fingerprint: str) -> dict[str, Any]:
    row = {
        "name": "dense",
        "protocol": "4 of 4 queries have a match",
        "num_valid_queries": 4,
        **{"mAP": 0.75, "rank1": 0.5, "rank5": 1.0, "rank10": 1.0, "mINP": 0.25},
    }
    return {
        "dataset": "mars",
        "protocol": {"name": "official"},
        "model": {"fingerprint": fingerprint},
        "versions": {"tfclip": "0.1", "torch": "2.6"},
        "rows": [row],
    }


def test_one_command_writes_all_that_is_uploaded_and_sends_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr(script.HfApi, "create_repo", refuse)
    monkeypatch.setattr(script.HfApi, "create_commit", refuse)
    assert run(checkpoint) == 0
    said, out = capsys.readouterr().out, checkpoint.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(script.FILES)
    for name in script.FILES:
        assert f"{(out / name).stat().st_size:,} bytes  sha256 {file_sha256(out / name)}" in said
    assert "nothing was sent" in said
    card = ModelCard.load(out / "README.md")
    assert f"- sha256: {file_sha256(checkpoint)}" in card.text
    assert 'from_pretrained("org/mars")' in card.text


def test_golden_outputs_are_those_of_the_saved_weights_and_are_compared_again(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint) == 0
    golden = checkpoint.parent / "out" / "golden.safetensors"
    stored = load_file(golden)
    model = TFCLIP.from_pretrained(golden.parent)
    with torch.inference_mode():
        assert torch.equal(model(stored["frames"]).embedding, stored["embedding"])
    before = golden.read_bytes()
    assert run(checkpoint) == 0
    assert golden.read_bytes() == before
    stored["embedding"][1, 3] += 2 * script.TOLERANCE
    save_file(stored, golden)
    capsys.readouterr()
    assert run(checkpoint, "--push") == 1
    assert "embeddings differ by 0.0001" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best_model.pth.tar").write_bytes(b"nothing")
    assert run(tmp_path / "best_model.pth.tar") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a store that this Hub has not
    with taken_for_the_hub(tmp_path, monkeypatch) as local:
        yield local


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub 2.4 about its own upload
@pytest.mark.parametrize("large", [False, True])
def test_push_sends_exactly_these_files_in_one_commit(
    checkpoint: Path, server: Any, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    server.large = large
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert run(checkpoint, "--push") == 0
    repository, out = server.repositories["org/mars"], checkpoint.parent / "out"
    assert len(repository.commits) == 2  # of its creation, and this
    files = repository.commits[repository.names["main"]]
    assert {name: files[name] for name in script.FILES} == {
        name: (out / name).read_bytes() for name in script.FILES
    }
    if not huggingface_hub.__version__.startswith("0."):  # which ask the real Hub, whatever is set
        ModelCard.load(out / "README.md").validate()


def test_a_push_without_the_right_to_is_one_sentence(
    checkpoint: Path,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert run(checkpoint, "--push") == 1
    assert "release_weights: cannot push to org/mars" in capsys.readouterr().err


def test_figures_of_a_report_become_results_that_the_hub_reads(
    checkpoint: Path, tiny_model: TFCLIP
) -> None:
    assert run(checkpoint) == 0
    out = checkpoint.parent / "out"
    (out / "README.md").unlink()
    fingerprint = model_fingerprint(TFCLIP.from_pretrained(out))
    path = checkpoint.parent / "report.json"
    path.write_text(json.dumps(report_of(fingerprint)))
    assert run(checkpoint, "--report", str(path)) == 0
    card = ModelCard.load(out / "README.md")
    data: Any = card.data
    results = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "mAP": 75.0, "rank-1": 50.0, "rank-5": 100.0, "rank-10": 100.0, "mINP": 25.0
    }  # fmt: skip
    assert results["mAP"].dataset_config == "official: dense"
    assert results["mAP"].dataset_args == {"protocol": "4 of 4 queries have a match"}
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert "model-index" in card.data.to_dict()
    assert "| dense | 75.00 | 50.00 | 100.00 | 100.00 | 25.00 | 4 |" in card.text
    assert f"fingerprint `{fingerprint}`" in card.text


def test_figures_of_other_weights_never_come_into_a_card(
    tiny_model: TFCLIP, tmp_path: Path
) -> None:
    for report in (report_of("0" * 16), {}, {"model": "x"}):
        with pytest.raises(TableError, match="reports must be of these weights"):
            hub.save(tiny_model, tmp_path / "out", reports=[report])
    report = report_of(model_fingerprint(tiny_model))
    del report["rows"]
    with pytest.raises(TableError, match="reports must be those of tfclip evaluate"):
        hub.save(tiny_model, tmp_path / "out", reports=[report])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _take_out(report: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each mapping of a report with each of its keys."""
    if isinstance(report, dict):
        for key, value in report.items():
            yield report, key
            yield from _take_out(value)
    elif isinstance(report, list):
        for value in report:
            yield from _take_out(value)


def test_a_report_that_lacks_anything_of_the_card_is_no_report() -> None:
    widths = {"appearance": 1, "projected": 1, "temporal": 1}
    report = report_of("0" * 16)
    named = [(part, key) for part, key in _take_out(report) if key not in ("tfclip", "torch")]
    assert len(named) == 15
    for part, key in named:
        value = part.pop(key)
        with pytest.raises(TableError, match=f"reports must be those of .*, check '{key}'"):
            model_card(TFCLIPConfig(), widths, "x", [report])
        part[key] = value
    assert "| dense | 75.00 |" in model_card(TFCLIPConfig(), widths, "x", [report])


def test_the_card_says_threshold_and_uses_or_that_there_are_none() -> None:
    widths = {"appearance": 1, "projected": 1, "temporal": 1}
    card = model_card(TFCLIPConfig(), widths, "x")
    assert "None was fitted" in card
    assert "claims no accuracy" in card
    for heading in ("## Intended use", "## Out of scope", "## Limits", "## Licence"):
        assert heading in card
    calibration = {
        **{"threshold": 0.625, "asked_false_match_rate": 0.01, "false_match_rate": 0.008},
        **{"false_non_match_rate": 0.2, "num_same": 10, "num_different": 1000, "prior": 0.1},
        **{"kind": "logistic", "distances": [], "probabilities": [], "slope": 1, "intercept": 0},
        **{"fitted_on": "drawn people", "fingerprint": "0" * 16, "sampling": "dense"},
        "cameras": False,
    }
    card = model_card(TFCLIPConfig(calibration=calibration), widths, "x")
    assert "at most **0.625** are said to" in card
    assert "1,000 of two persons of drawn people" in card
