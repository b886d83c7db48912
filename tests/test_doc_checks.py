"""What tests the pages finds what is wrong with them, and leaves alone what is right."""

from __future__ import annotations

import pytest

from tests.doc_blocks import Block, commands, inline_code, kind_of, read_blocks
from tests.doc_commands import check, unknown_options
from tests.doc_names import Instance, wrong_names
from tfclip import TFCLIP


def block(language: str, *lines: str) -> Block:
    text = "\n".join((f"```{language}", *lines, "```"))
    (found,) = read_blocks("page.md", text)
    return found


def test_blocks_are_found_where_markdown_has_them():
    text = """
# Page

- item

  ```bash
  tfclip demo
  ```

      indented below an item: part of it, as far as a reader sees

```` text more words
```python
````

    tfclip app

    tfclip data list
~~~
last
~~~
"""
    found = read_blocks("page.md", text)
    assert [(block.line, block.end, block.language) for block in found[:2]] == [
        (6, 8, "bash"),
        (12, 14, "text"),
    ]
    assert [block.text for block in found] == [
        "tfclip demo\n",
        "```python\n",
        "tfclip app\n\ntfclip data list\n",
        "last\n",
    ]
    assert [block.language for block in found[2:]] == ["indented", ""]
    with pytest.raises(ValueError, match="this block has no end"):
        read_blocks("page.md", "```bash\ntfclip demo")


def test_a_block_that_nothing_would_test_is_refused_with_what_to_do():
    assert "add the language to DATA" in (kind_of(block("cobol", "STOP RUN.")) or "")
    assert "a block without a language" in (kind_of(block("", "MARS/")) or "")
    assert "only the part after >>>" in (kind_of(block("python", "import os", ">>> 1")) or "")
    assert "that is skipped" in (kind_of(block("python", ">>> f()  # doctest: +SKIP")) or "")
    assert kind_of(block("python", ">>> 1 + 1", "2")) is None


def test_commands_are_split_as_a_shell_splits_them():
    lines = (
        "# only a remark",
        "A=1 B='2 3' tfclip demo --out \"my demo\" > log 2> errors   # remark",
        "export A=1; ruff check --fix && ruff format | tee $LOG",
        "tfclip cluster a b \\",
        "    --threshold ${LIMIT:-3}",
    )
    assert list(commands(block("bash", *lines))) == [
        ["tfclip", "demo", "--out", "my demo"],
        ["export", "A=1"],
        ["ruff", "check", "--fix"],
        ["ruff", "format"],
        ["tee", "1"],
        ["tfclip", "cluster", "a", "b", "--threshold", "1"],
    ]
    said = ("$ tfclip data \\", "    list", "mars   1261 people", "$ tfclip app")
    assert list(commands(block("console", *said))) == [
        ["tfclip", "data", "list"],
        ["tfclip", "app"],
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tfclip demo --out demo --ouf demo", "unrecognized arguments: --ouf demo"),
        ("tfclip encode", "the following arguments are required"),
        ("tfclip search a b --top ten", "--top"),
        ("python examples/train.py synthetic --out a --presett tiny", "unrecognized"),
        ("python examples/nothing.py", "there is no script"),
        ("torchrun --processes 2 examples/train.py mars", "unrecognized arguments: --proc"),
        ("torchrun --nproc-per-node 2 examples/train.py mars --out a --bf17", "ments: --bf17"),
        ('pip install ".[vizz]"', "no extra vizz"),
        ("pip install tfclip-fast", "no package 'tfclip-fast'"),
        ('pytest -m "not slov"', "there is no slov"),
        ("pytest tests/test_nothing.py", "there is no tests/test_nothing.py"),
        ("python -c 'from tfclip import TFCLIPP'", "tfclip has no TFCLIPP"),
        ("frobnicate --all", "nothing checks the program 'frobnicate'"),
    ],
)
def test_a_wrong_command_is_found(line, message):
    (words,) = commands(block("bash", line))
    assert message in (check(words) or "")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import tfclip.nothing", "there is no module tfclip.nothing"),
        ("from tfclip import Galery", "tfclip has no Galery"),
        ("import tfclip\ntfclip.tracking.TrackEncoder", "line 2: tfclip.tracking has no TrackEn"),
        ("from tfclip import TFCLIP\nTFCLIP.from_pretraned('x')", "TFCLIP has no from_pretraned"),
        ("from tfclip import Gallery\nGallery.open('x', modell=1)", "'modell'"),
        ("from tfclip.app import serve\nserve()", "missing a required argument: 'app'"),
        ("model.encode_sequence(f, samplin='all')", "'samplin'"),
        ("model.encode_sequense(f)", "TFCLIP has no encode_sequense"),
        (
            "from tfclip import TFCLIP as T\nm = T.from_pretrained('x')\nfor f in m.encod(x): ...",
            "line 3: TFCLIP has no encod",
        ),
        (
            "from tfclip.video import LiveVideo\nwith LiveVideo('x') as v:\n    v.num_droped",
            "line 3: LiveVideo has no num_droped",
        ),
        ("from tfclip.data import load_dataset\nload_dataset('mars', '/').tests", "no tests"),
    ],
)
def test_a_wrong_name_is_found(code, message):
    (problem,) = wrong_names(code, {"model": Instance(TFCLIP)})
    assert message in problem


def test_right_names_and_those_of_others_are_left_alone():
    code = """
import tfclip, json
from tfclip.video import LiveVideo
json.nothing(tfclip.TFCLIPConfig(frame_size=(64, 32)).frame_size)
def run(model, *clips):
    return model.anything(*clips)
with LiveVideo("rtsp://camera", timeout=3) as live:
    for frame in live:
        frame.anything, live.num_dropped, model.config.anything, model.temporal
model = json.loads("{}")
model.anything(speed=1)
"""
    assert wrong_names(code, {"model": Instance(TFCLIP)}) == []


def test_options_within_sentences_are_found_when_they_are_wrong():
    text = (
        "Use `tfclip data check mars\n--imagess` or `tfclip galery`, not\n`tfclip search --top K`."
    )
    found = [words for place, words in inline_code("page.md", text) if place == "page.md:1"]
    assert found == ["tfclip data check mars --imagess"]
    wrong = [unknown_options(code.split()[1:]) for _, code in inline_code("page.md", text)]
    assert wrong == [["has no option --imagess"], ["has no command galery"], []]
