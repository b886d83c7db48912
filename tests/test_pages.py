"""What the pages of quickstart, training and models say, held against the library.

Their ``>>>`` examples are run by pytest itself.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.backbones import build_backbone
from tfclip.cli import _build_parser, main
from tfclip.data import EmbeddingTable, SyntheticTracklets
from tfclip.objective import LOSS_WEIGHTS
from tfclip.training import PRESETS, Recipe

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("index", "quickstart", "training", "models")
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str, *start: str) -> list[list[str]]:
    """The lines of a page's blocks that begin with these words, as words."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if tuple(line[: len(start)]) == start]


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    text = PAGES[page].partition(f"## {heading}\n")[2]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
            if line.startswith("|")]  # fmt: skip
    ends = [i for i, row in enumerate(rows) if set(row[0]) <= {"-", ":"}]
    return rows[ends[0] + 1 : ends[1] - 1 if len(ends) > 1 else None]


# --- landing page ----------------------------------------------------------------------------


def test_the_landing_page_names_every_page_in_its_table_and_in_its_tree():
    files = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    linked = set(re.findall(r"\]\((\w+)\.md\)", PAGES["index"]))
    tree = {
        name for block in blocks("index", "{toctree}") for name in block.split("\n\n")[1].split()
    }
    assert linked == tree == files


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_has_options_that_exist(page: str):
    for line in commands(page, "tfclip"):
        assert _build_parser().parse_args(line[1:]).run


# --- quickstart ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quickstart_finds_everybody_and_no_stranger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (draw,) = (block for block in blocks("quickstart", "python") if ">>>" not in block)
    exec(draw, {})
    said = []
    for line in commands("quickstart", "tfclip"):
        assert main(line[1:]) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    assert len(EmbeddingTable.load("people.safetensors")) == 36
    assert Path("ranked.png").stat().st_size > 10_000
    strangers, people = (text for text in said if "threshold: " in text and "near enough" in text)
    left, missed = (
        int(re.findall(rf"nobody is near enough to (\d+) of {number}\n", text)[0])
        for text, number in ((strangers, 9), (people, 36))
    )
    assert left >= 8
    assert missed <= 4
    config = TFCLIP.from_pretrained("calibrated").config
    assert "24 persons" in config.calibration["fitted_on"]
    assert re.search(r"3 entries forgotten; seen/? holds 33", said[-2])


# --- training --------------------------------------------------------------------------------


@pytest.fixture
def train(monkeypatch) -> Any:
    """The script examples/train.py, as a module."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    return importlib.import_module("train")


def test_the_table_of_the_recipe_is_that_of_the_code():
    rows = cells("training", "The recipe")
    assert [row[0].strip("`") for row in rows] == [f.name for f in dataclasses.fields(Recipe)]
    for name, *values, _ in rows:
        for preset, value in zip(("reference", "paper60", "tiny"), values, strict=True):
            recipe = Recipe(**PRESETS[preset])
            assert ast.literal_eval(value) == getattr(recipe, name.strip("`")), (preset, name)


def test_the_table_of_the_losses_is_that_of_the_code():
    rows = cells("training", "The losses")
    assert [row[0].strip("`") for row in rows] == [*LOSS_WEIGHTS["released"], "loss"]
    for name, _, released, paper in rows[:-1]:
        weight = name.strip("`")
        assert float(released.split()[0]) == LOSS_WEIGHTS["released"][weight]
        assert float(paper) == LOSS_WEIGHTS["paper"].get(weight, 0)


def test_the_trainings_on_the_page_have_options_that_exist(train):
    lines = commands("training", "python", "examples/train.py")
    assert len(lines) >= 4
    fields = {field.name for field in dataclasses.fields(TFCLIPConfig)}
    for line in lines:
        settings = train.parse(line[2:]).settings
        Recipe(**{**PRESETS["reference"], **settings["recipe"]})
        assert set(settings["model"]) <= fields


def test_options_that_the_page_of_training_names_are_those_of_the_script(train, capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    of_the_command_line = {"--model", "--picture", "--reject", "--use-cameras"}
    prose = re.sub(r"^```.*?^```$", "", PAGES["training"], flags=re.DOTALL | re.MULTILINE)
    named = {
        word
        for code in re.findall(r"`([^`]+)`", prose)
        for word in re.findall(r"--[a-z][\w-]+", code)
    }
    assert len(named) > 15
    assert named - of_the_command_line <= known


def test_messages_that_the_page_explains_are_in_the_code():
    signs = [row[0] for row in cells("training", "What goes wrong, and how it shows")]
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in [*(ROOT / "tfclip").rglob("*.py"), ROOT / "examples" / "train.py"]
    )
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a message in two pieces
    messages = [code for sign in signs for code in re.findall(r"`([^`]* [^`]*)`", sign)]
    assert len(messages) >= 7
    for message in messages:
        pieces = re.split(r":|\b\d+\b|'[^']*'|\bnan\b|\.\.\.|last\.pt ", message)
        for piece in filter(str.strip, pieces):
            assert piece.strip(" ;:,") in sources, message


@pytest.mark.slow
def test_a_folder_gives_its_tower_and_its_settings_and_the_rest_begins_anew(train, tmp_path):
    config = TFCLIPConfig(
        backbone_options={"width": 32, "layers": 1, "heads": 2, "patch_size": 8, "output_dim": 16},
        frame_size=(64, 32),
        temporal_heads=2,
        num_cameras=6,
    )
    start = TFCLIP(config)
    start.save_pretrained(tmp_path / "start")
    people = SyntheticTracklets(2, 2, 1, num_frames=4, frame_size=(64, 32))
    people.write(tmp_path / "crops")
    train.main(
        [
            *(str(tmp_path / "crops"), "--layout", "{person}/{camera}/{tracklet}"),
            *("--init", str(tmp_path / "start"), "--device", "cpu", "--out", str(tmp_path / "out")),
            *("--set", "model.num_cameras=0", "recipe.epochs=1", "recipe.identities_per_batch=2"),
        ]
    )
    tuned = TFCLIP.from_pretrained(tmp_path / "out" / "model")
    assert tuned.config.num_cameras == 0
    assert tuned.config.frame_size == config.frame_size
    moved = {
        name: (value - start.state_dict()[name]).abs().max().item()
        for name, value in tuned.state_dict().items()
    }
    towers = [moved[name] for name in moved if name.startswith("backbone.")]
    assert 0 < max(towers) < 1e-4  # one epoch of warm-up
    assert max(moved[name] for name in moved if name.startswith("temporal.")) > 1e-2


# --- models ----------------------------------------------------------------------------------


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize("row", cells("models", "What can be built"), ids=lambda row: row[0])
def test_a_row_of_the_table_of_models_is_what_is_built(row: list[str]):
    call = ast.parse(f"TFCLIPConfig(backbone={row[0].strip('`')})", mode="eval").body
    assert isinstance(call, ast.Call)
    fields = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    config = TFCLIPConfig(**fields)
    tokens, width, projected, embedding, parameters = map(number, row[1:])
    with torch.device("cpu" if config.is_timm else "meta"):
        model = TFCLIP(config)
    backbone = model.backbone
    assert 1 + backbone.num_registers + backbone.grid[0] * backbone.grid[1] == tokens
    assert (backbone.width, backbone.projected_width) == (width, projected)
    assert model.embedding_dim == embedding
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_what_a_plain_clip_gives_is_as_long_as_the_page_says():
    config = TFCLIPConfig(descriptor=("appearance", "projected"))
    with torch.device("meta"):
        backbone = build_backbone(config)
        assert TFCLIP(config).embedding_dim == backbone.width + backbone.projected_width
