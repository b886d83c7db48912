"""``tfclip encode`` and ``search`` on real tracklets, where they are at hand."""

import pytest
import torch

from tests.cli.commands import run, width_of
from tests.real_data import real
from tfclip import TFCLIP
from tfclip.data import EmbeddingTable, read_mot


@pytest.mark.slow
def test_mini_mars_is_encoded_and_searched(tmp_path, model_folder, capsys):
    folder = tmp_path / "mars"  # two persons, linked and not copied
    for person in ("0004", "0016"):
        (folder / person).mkdir(parents=True)
        for image in real("mini_mars", "bbox_test", person).iterdir():
            if int(image.stem[-3:]) <= 6:
                (folder / person / image.name).symlink_to(image)
    out = tmp_path / "mars.safetensors"
    assert run("encode", folder, "--out", out, "--model", model_folder) == 0
    table = EmbeddingTable.load(out)
    assert set(table.persons) == {"0004", "0016"}
    assert set(table.num_frames) == {6}
    assert run("search", out, out, "--exclude-same-camera", "--top", 3) == 0
    assert capsys.readouterr().out.count("query ") == len(table)


@pytest.mark.slow
def test_a_converted_checkpoint_encodes_and_searches_the_tracklets_of_pets(
    tmp_path, golden, capsys
):
    checkpoint, model = tmp_path / "best_model.pth.tar", tmp_path / "model"
    torch.save(golden("state_dict"), checkpoint)
    sizes = ("--clip-length", 4, "--frame-size", 64, 32)
    assert run("convert", checkpoint, model, *sizes) == 0
    out, crops = tmp_path / "pets.safetensors", real("pets09_s2l1", "crops")
    layout = ("--layout", "{person}/{tracklet}")
    sampling = ("--sampling", "rrs", "--model", model)
    assert run("encode", crops, *layout, "--out", out, *sampling) == 0
    table = EmbeddingTable.load(out)
    assert len(table) == 29
    assert len(set(table.persons)) == 10
    row = table.names.index("0001/03")
    loaded = TFCLIP.from_pretrained(model)
    expected = loaded.encode_sequence(crops / "0001" / "03", sampling="rrs")
    torch.testing.assert_close(table.embeddings[row], expected, rtol=0, atol=1e-5)
    picture = tmp_path / "pets.png"
    capsys.readouterr()
    assert run("search", out, out, "--top", 3, "--picture", picture) == 0
    assert capsys.readouterr().out.count("query ") == 29
    assert width_of(picture) > 500


@pytest.mark.slow
def test_the_video_of_tud_campus_is_encoded_and_searched(tmp_path, model_folder):
    folder = real("tud_campus")
    out = tmp_path / "tud.safetensors"
    boxes = folder / "gt" / "gt.txt"
    source = folder / "TUD-Campus.mp4"
    assert run("encode", source, "--boxes", boxes, "--out", out, "--model", model_folder) == 0
    table = EmbeddingTable.load(out)
    assert table.num_frames == (24, 48, 63, 71, 71, 9, 48, 25)
    sixth = read_mot(source, boxes)[5]
    expected = TFCLIP.from_pretrained(model_folder).encode_sequence(sixth.open())
    torch.testing.assert_close(table.embeddings[5], expected, rtol=0, atol=1e-5)
    picture = tmp_path / "tud.png"
    assert run("search", out, out, "--picture", picture, "--top", 3) == 0
    assert picture.exists()
