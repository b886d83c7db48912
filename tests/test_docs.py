"""Every block of code in README and the pages is run, parsed or checked; none escapes.

``>>>`` examples are run by pytest itself. Python without them runs here, page by page, in a folder
that holds what the page speaks of; what cannot run is in ``NOT_RUN`` with the reason, and the names
that it takes of tfclip must exist. Every command is put to the parser that would read it.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import data_trees
from tests.doc_blocks import (
    DATA,
    ROOT,
    SHELL,
    Block,
    blocks_of,
    commands,
    inline_code,
    kind_of,
    pages,
    read_page,
)
from tests.doc_commands import check, unknown_options
from tests.doc_names import Instance, wrong_names
from tfclip import TFCLIP
from tfclip.data import EmbeddingTable, SyntheticTracklets, load_dataset
from tfclip.errors import MissingExtraError

# Page and a part of the block: why it is not run. Its names are looked up all the same.
NOT_RUN = {
    ("README.md", "distance ="): "run by tests/test_readme.py",
    ("README.md", "TFCLIP.from_clip("): "downloads the weights of OpenAI's CLIP",
    ("docs/app.md", "serve(build_app("): "serves until it is interrupted",
    ("docs/video.md", 'LiveVideo("rtsp://user:'): "needs a camera",
    ("docs/video.md", 'LiveVideo("rtsp://camera/'): "needs a camera",
}

# What a page says of the machine, and what it is in a test.
HERE = {
    '"/data/': '"data/',  # where data sets lie: drawn ones
    "num_workers=8": "num_workers=0",  # a test starts no processes
    "    40, 3, 1, num_frames": "    2, 2, 1, num_frames",  # fewer people are drawn sooner
}

OPTIONAL = {"av", "faiss", "gradio", "h5py", "matplotlib", "onnx", "onnxruntime", "openvino"}
OPTIONAL |= {"openvino", "pyarrow", "pymilvus", "ray", "scipy"}


# --- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages())
def test_every_block_is_of_a_kind_that_is_tested(page):
    assert [wrong for block in blocks_of(page) if (wrong := kind_of(block))] == []


@pytest.mark.parametrize("page", pages())
def test_a_page_hides_no_code_in_directives(page):
    for block in blocks_of(page):
        if block.language.startswith("{"):
            hidden = re.search(r"code-block|sourcecode|literal|::\s*$", block.text, re.MULTILINE)
            assert not hidden, f"{block.place}: {hidden}"


@pytest.mark.parametrize("page", pages())
def test_markdowns_own_parser_finds_the_same_blocks(page):
    markdown: Any = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    tokens = markdown.MarkdownIt().parse(read_page(page))
    theirs = [
        (token.map[0] + 1, token.info.split()[0] if token.info.strip() else "")
        if token.type == "fence"
        else (token.map[0] + 1, "indented")
        for token in tokens
        if token.type in ("fence", "code_block")
    ]
    assert [(block.line, block.language) for block in blocks_of(page)] == theirs


@pytest.mark.parametrize("page", pages())
def test_blocks_of_data_can_be_parsed(page):
    for block in blocks_of(page):
        if block.language in DATA:
            assert DATA[block.language](block.text) is not None, block.place
        elif block.language == "yaml":
            yaml: Any = pytest.importorskip("yaml", reason="PyYAML is not installed")
            assert list(yaml.safe_load_all(block.text)), block.place


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages())
def test_every_command_has_options_that_exist(page):
    wrong = []
    for block in blocks_of(page):
        if block.language in SHELL and not block.is_doctest:
            wrong += [f"{block.place}: {one}" for words in commands(block) if (one := check(words))]
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_commands_within_sentences_have_options_that_exist(page):
    wrong = []
    for place, code in inline_code(page, read_page(page)):
        try:
            words = shlex.split(code)
        except ValueError:  # an apostrophe: a piece of a command at most
            continue
        if words[:1] == ["tfclip"]:
            wrong += [f"{place}: tfclip {one}" for one in unknown_options(words[1:])]
        elif words[:1] == ["python"] and words[1:2] and words[1].startswith("examples/"):
            wrong += [f"{place}: {one}" for one in unknown_options(words[2:], words[1])]
    assert wrong == []


# --- Python --------------------------------------------------------------------------------------


def reason_of(block: Block) -> str | None:
    """Return why a block is not run, or nothing."""
    for (page, part), reason in NOT_RUN.items():
        if page == block.page and part in block.text:
            return reason
    return None


PYTHON = {page: blocks_of(page, "python") for page in pages()}
TO_RUN = {
    page: found
    for page, blocks in PYTHON.items()
    if (found := [block for block in blocks if reason_of(block) is None])
}
TO_READ = [block for blocks in PYTHON.values() for block in blocks if reason_of(block)]


def examples_before(block: Block) -> Iterator[ast.Module]:
    """Yield imports and definitions of the page's ``>>>`` examples above a block.

    A reader has typed them; what else the examples do is run by pytest.
    """
    for example in doctest.DocTestParser().get_examples(read_page(block.page)):
        tree = ast.parse(example.source)
        kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        if example.lineno < block.line and all(isinstance(node, kept) for node in tree.body):
            yield tree


def write_openvino() -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO (extra 'export') is not installed")
    from tfclip.export import export_model, parity

    with pytest.MonkeyPatch.context() as patch:  # the gate is not what is tested
        patch.setattr(parity, "SHAPES", ((1, 1), (3, 2)))
        patch.setattr(parity, "ROUNDS", 1)
        # tfclip imports OpenVINO so that it reports to nobody; the block then finds it imported.
        export_model(TFCLIP.from_pretrained("tfclip-tiny"), "person.xml", precision="bfloat16")


def write_embeddings() -> None:
    EmbeddingTable(
        embeddings=torch.eye(4, 8)[[0, 0, 1, 1]],
        names=("a", "b", "c", "d"),
        persons=("1", "1", "2", "2"),
        cameras=(0, 1, 0, 1),
        model="tfclip-tiny",
    ).save("mars.safetensors")


def draw_mars() -> dict[str, Any]:
    root = data_trees.mars_tree(Path("data/MARS"))
    dataset = load_dataset("mars", root)
    return {"dataset": dataset, "embeddings": torch.zeros(len(dataset.test), 352)}


PREPARED: dict[str, Callable[[], dict[str, Any] | None]] = {
    "docs/benchmarks.md": write_embeddings,
    "docs/datasets.md": draw_mars,
    "docs/export.md": write_openvino,
}


@pytest.fixture
def reader(tmp_path, monkeypatch) -> dict[str, Any]:
    """Stand where a reader of any page stands: drawn people in two folders, a model, tracklets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    people = SyntheticTracklets(3, 2, 1, num_frames=(3, 6), frame_size=(64, 32), seed=2)
    people.write("demo/people-12x3-seed-0", "jpg")
    people.write("crops", "jpg")
    random = np.random.default_rng(0)
    return {
        "__name__": "page",
        "model": TFCLIP.from_pretrained("tfclip-tiny"),
        "tracklets": [people[number].frames for number in range(2)],
        "frames": random.integers(0, 256, (2, 8, 3, 64, 32), dtype=np.uint8),
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN)
def test_the_python_of_a_page_runs_in_its_order(page, reader):
    prepare = PREPARED.get(page)
    reader |= (prepare() if prepare else None) or {}
    for block in TO_RUN[page]:
        for tree in examples_before(block):
            exec(compile(tree, block.place, "exec"), reader)
        code = block.text
        for said, here in HERE.items():
            code = code.replace(said, here)
        code = "\n" * block.line + code  # so that an error names the line of the page
        try:
            exec(compile(code, ROOT / page, "exec"), reader)
        except (MissingExtraError, ModuleNotFoundError) as error:
            missing = error.__cause__ if isinstance(error, MissingExtraError) else error
            if (getattr(missing, "name", None) or "").split(".")[0] not in OPTIONAL:
                raise
            pytest.skip(f"{block.place}: {error}")


@pytest.mark.parametrize("block", TO_READ, ids=[block.place for block in TO_READ])
def test_what_cannot_run_compiles_and_takes_names_that_exist(block):
    compile(block.text, block.place, "exec")
    known: dict[str, Any] = {"model": Instance(TFCLIP)}
    for tree in examples_before(block):
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(tree, block.place, "exec"), names)
        known |= {name: value for name, value in names.items() if is_ours(value)}
    assert wrong_names(block.text, known) == []


def is_ours(value: object) -> bool:
    module = getattr(value, "__module__", None) or getattr(value, "__name__", None) or ""
    return module.split(".")[0] == "tfclip"


def test_each_reason_is_of_one_block_that_is_there():
    for page, part in NOT_RUN:
        found = [block for block in PYTHON[page] if part in block.text]
        assert len(found) == 1, f"{page}: {part!r} is in {len(found)} blocks"


def test_every_page_is_one_that_pytest_looks_into_for_examples():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--doctest-glob=*.md" in options["addopts"]
    for page in pages():
        assert any(page == path or page.startswith(f"{path}/") for path in options["testpaths"])
