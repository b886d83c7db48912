"""What README tells a newcomer to type, run as it stands on drawn people.

Its ``>>>`` examples are run by pytest itself; what would download weights is left out. Whether
every command has options that exist is asked in test_docs.py, of all pages.
"""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests import doc_blocks
from tfclip.cli import main
from tfclip.data import EmbeddingTable, SyntheticTracklets

README = doc_blocks.read_page("README.md")
PEOPLE = "demo/people-12x3-seed-0"


def blocks(language):
    return [block.text for block in doc_blocks.blocks_of("README.md", language)]


def commands(*names):
    """Return the lines of README that call ``tfclip`` with one of these commands."""
    found = doc_blocks.blocks_of("README.md", "bash")
    words = [one for block in found for one in doc_blocks.commands(block)]
    return [one[1:] for one in words if one[0] == "tfclip" and one[1] in names]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what README speaks of: the demo's people, MARS crops, a video with tracks."""
    monkeypatch.chdir(tmp_path)
    people = SyntheticTracklets(5, 2, 1, num_frames=(3, 6), frame_size=(64, 32), seed=2)
    people.write(PEOPLE, "jpg")
    for person, camera in ((2, 1), (2, 3), (7, 1)):
        folder = Path("bbox_test", f"{person:04d}")
        folder.mkdir(parents=True, exist_ok=True)
        for frame, source in enumerate(sorted(Path(PEOPLE, "0001/0/0").iterdir()), start=1):
            name = f"{person:04d}C{camera}T0001F{frame:03d}.jpg"
            (folder / name).write_bytes(source.read_bytes())
    with av.open("street.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shade in range(6):
            picture = np.full((64, 96, 3), 40 * shade, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    tracks = [f"{frame},{person},{20 * person},4,16,40" for person in (1, 2) for frame in (1, 2, 5)]
    Path("tracks.txt").write_text("\n".join(tracks))
    return tmp_path


@pytest.mark.slow
def test_the_first_lines_of_python_find_the_person(workplace):
    (code,) = (block for block in blocks("python") if "distance =" in block)
    names = {}
    exec(code, names)
    assert names["gallery"].shape == (3, names["model"].embedding_dim)
    expected = torch.cdist(names["gallery"], names["query"][None])[:, 0].square()
    torch.testing.assert_close(names["distance"], expected, atol=1e-5, rtol=0)
    assert int(names["distance"].argmin()) == 1  # the query's person


def test_the_demo_leaves_people_where_the_next_lines_look_for_them():
    (line,) = (line for line in commands("demo") if line == ["demo", "--out", "demo"])
    assert line
    assert README.count(PEOPLE) == 3


@pytest.mark.slow
def test_the_commands_encode_search_and_evaluate(workplace, capsys):
    lines = commands("encode", "search", "evaluate")
    own = [line for line in lines if "mars-vit-b-16" not in line]  # the weights of the authors
    assert [line[0] for line in own] == ["encode", "encode", "encode", "search", "evaluate"]
    for line in own:
        assert main(line) == 0, capsys.readouterr().err
    counts = {"gallery": 10, "mars": 3, "street": 2}
    for name, count in counts.items():
        assert len(EmbeddingTable.load(f"{name}.safetensors")) == count
    said = capsys.readouterr().out
    assert said.count("query street/") == 2
    assert "people-12x3-seed-0, protocol own" in said
    with Image.open("ranked.png") as picture:
        assert picture.width > 500
