"""``tfclip evaluate`` and ``tfclip search --reject``, from the command to its files."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from tests.cli.commands import LAYOUT, make_model, run, usage_error
from tests.data_trees import mars_tree
from tests.real_data import real
from tfclip import TFCLIP
from tfclip.data import Dataset, EmbeddingTable, Protocol, SyntheticTracklets, read_folder
from tfclip.errors import TableError
from tfclip.evaluation import evaluate_model
from tfclip.groups import GroupEncoder


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of six drawn persons in three cameras, and one of six others."""
    folder = tmp_path_factory.mktemp("people")
    for name, first in (("tested", 0), ("fitted", 6)):
        SyntheticTracklets(
            6, 3, 1, num_frames=(2, 6), frame_size=(64, 32), seed=3, first_identity=first
        ).write(folder / name)
    return folder


@pytest.fixture(scope="module")
def mars(tmp_path_factory):
    """A tree as MARS is handed out, and a small model that knows its cameras."""
    folder = tmp_path_factory.mktemp("mars")
    mars_tree(folder / "MARS")
    make_model(folder / "model", num_cameras=2)
    return folder


def in_one_sentence(text):
    """Return the last line of what was said, which is the refusal."""
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


def figures(folder):
    return json.loads((folder / "report.json").read_text())["rows"]


# --- data sets -----------------------------------------------------------------------------------


def test_a_public_data_set_is_evaluated_by_its_protocol(mars, tmp_path, capsys):
    out = tmp_path / "out"
    model = ("--model", mars / "model")
    options = ("--frames", "dense,rrs", "--use-cameras", "both", "--out", out)
    assert run("evaluate", "mars", "--root", mars / "MARS", *model, *options) == 0
    said = capsys.readouterr().out
    assert "mars, protocol official" in said
    assert "4 of 4" in said
    rows = figures(out)
    assert [row["name"] for row in rows] == ["dense", "dense, cameras", "rrs", "rrs, cameras"]
    assert {row["num_queries"] for row in rows} == {4}
    protocol = json.loads((out / "report.json").read_text())["protocol"]
    assert (protocol["name"], protocol["junk"]) == ("official", [-1])
    assert run("evaluate", "mars", "--root", mars / "MARS", *model, "--out", out) == 0
    assert figures(out) == rows[:1]
    assert "embeddings are taken from" in capsys.readouterr().err


def test_without_out_nothing_is_written(mars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", "mars", "--root", mars / "MARS", "--model", mars / "model") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mrs", "--root", "{MARS}"), "data set must be one of mars, .*'mrs'"),
        (("mars", "--root", "{MARS}/bbox_test"), "bbox_test"),
        (("mars", "--root", "{MARS}", "--protocol", "offical"), "must be one of .*'offical'"),
        (("mars",), "--root must name the folder of mars"),
        (("mars", "--root", "{MARS}", "--query", "q"), "--query is for tracklets of your own"),
        (("mars", "--root", "{MARS}", "--frames", "some"), "--frames: must be some of"),
        (("mars", "--root", "{MARS}", "--frames", "rrs,rrs"), "each once"),
        (("mars", "--root", "{MARS}", "--use-cameras"), "this one has none"),
        (("mars", "--root", "{MARS}", "--out", "{file}"), "cannot write .*: it is not a folder"),
        (("mars", "--root", "{MARS}", "--report", "{MARS}"), "cannot write .*: it is a folder"),
        (("mars", "--root", "{MARS}", "--save-to", "x"), "--save-to writes the threshold"),
        (("mars", "--root", "{MARS}", "--fit-threshold", "2"), "must be above 0 and at most 1"),
        (
            ("mars", "--root", "{MARS}", "--fit-threshold", "0.001"),
            "0.001 cannot be measured with 1 pairs of two persons",
        ),
        (("--root", "{MARS}"), "name a DATASET, or tracklets of your own by --query"),
        (("--query", "{people}", "--root", "x", *LAYOUT), "--root is the folder of a DATASET"),
        (("--query", "t.csv", *LAYOUT), "--layout and --camera-names are for folders"),
        (("--query", "t.csv"), "cannot read t.csv"),
        (("--query", "{people}/nowhere"), "there is no such folder"),
        (("--query", "{people}"), "not known whom tracklet '0000/0/0' shows"),
        (("--query", "{people}", "--layout", "{person}/*/{tracklet}"), "camera of tracklet"),
        (("--query", "{people}/../one", *LAYOUT), "every tracklet is of camera 0"),
        (("--query", "{people}", "--queries-apart", *LAYOUT), "something to search in"),
        (("--query", "{people}", "--train", "{people}", *LAYOUT), "'0000' is in the training"),
        (
            ("--query", "{people}", *LAYOUT, "--fit-threshold", "0.1"),
            "tested has no training tracklets",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_encodes_nothing(
    mars, people, tmp_path, monkeypatch, capsys, arguments, message
):
    def refuse(*arguments, **options):
        raise AssertionError("something was encoded")

    monkeypatch.setattr(GroupEncoder, "encode", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    one = people / "one" / "0000" / "0"
    if not one.exists():
        one.mkdir(parents=True)
        (one / "0").symlink_to(people / "tested" / "0000" / "0" / "0")
        (one / "1").symlink_to(people / "tested" / "0001" / "0" / "0")
    places = {"MARS": mars / "MARS", "people": people / "tested", "file": tmp_path / "file"}
    filled = [
        re.sub(r"\{(MARS|people|file)\}", lambda m: str(places[m[1]]), text) for text in arguments
    ]
    model = () if "--use-cameras" in filled else ("--model", mars / "model")
    try:
        status = run("evaluate", *filled, *model)
    except SystemExit as caught:
        status = caught.code
    assert status in (1, 2)
    assert re.search(message, in_one_sentence(capsys.readouterr().err))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interruption_says_that_the_command_goes_on_if_it_does(
    mars, tmp_path, monkeypatch, capsys
):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(GroupEncoder, "encode", interrupt)
    command = ("evaluate", "mars", "--root", mars / "MARS", "--model", mars / "model")
    assert run(*command) == 130
    assert in_one_sentence(capsys.readouterr().err) == "tfclip: interrupted"
    assert run(*command, "--cache", tmp_path / "cache") == 130
    assert "the same command goes on from here" in capsys.readouterr().err


# --- own data and thresholds ---------------------------------------------------------------------


def test_own_folders_are_evaluated_and_a_threshold_rejects_strangers(people, tmp_path, capsys):
    tested, fitted = people / "tested", people / "fitted"
    out, calibrated, page = tmp_path / "out", tmp_path / "calibrated", tmp_path / "page.html"
    options = ("--out", out, "--fit-threshold", 0.05, "--save-to", calibrated, "--report", page)
    assert run("evaluate", "--query", tested, "--train", fitted, *LAYOUT, *options) == 0
    said = capsys.readouterr().out
    assert "tested, protocol own" in said
    assert "it holds for this model, frames dense, without cameras, and this kind of data" in said
    assert str(calibrated) in said
    assert (out / "distances.png").stat().st_size > 1000
    assert page.read_text().startswith("<!DOCTYPE html>")
    calibration = TFCLIP.from_pretrained(calibrated).calibration
    assert calibration is not None
    assert f"threshold {calibration.threshold:.4f}" in said

    files = {}
    for name, folder in (("tested", tested), ("fitted", fitted)):
        files[name] = tmp_path / f"{name}.safetensors"
        assert run("encode", folder, *LAYOUT, "--out", files[name], "--model", calibrated) == 0
    capsys.readouterr()
    reject = ("--reject", "--model", calibrated, "--top", 20)
    assert run("search", files["tested"], files["fitted"], *reject) == 0
    said = capsys.readouterr().out
    shown = [float(d) for d in re.findall(r"^ +\d+ +(\d\.\d+) ", said, re.MULTILINE)]
    queries, gallery = (EmbeddingTable.load(path).embeddings for path in files.values())
    distance = torch.cdist(queries, gallery).square()
    within = distance <= calibration.threshold
    assert len(shown) == int(within.sum()) < distance.numel() / 4
    empty = int((~within.any(1)).sum())
    assert said.count("nothing is left of the gallery") == empty > 0
    threshold = f"threshold: {calibration.threshold:.4f}"
    assert f"{threshold}; nobody is near enough to {empty} of 18" in said


def test_a_threshold_is_used_only_for_the_embeddings_it_was_fitted_for(
    mars, people, tmp_path, capsys
):
    calibrated = tmp_path / "calibrated"
    options = ("--fit-threshold", 0.1, "--save-to", calibrated)
    source = people / "tested"
    assert run("evaluate", "--query", people / "fitted", "--train", source, *LAYOUT, *options) == 0
    files = {}
    for name, settings in (
        ("same", ()),
        ("other", ("--model", mars / "model")),
        ("rrs", ("--sampling", "rrs")),
    ):
        files[name] = tmp_path / f"{name}.safetensors"
        assert run("encode", source, *LAYOUT, "--out", files[name], *settings) == 0
    capsys.readouterr()
    reject = ("--reject", "--model", calibrated)
    assert run("search", files["same"], files["same"], *reject) == 0
    capsys.readouterr()
    assert run("search", files["other"], files["other"], *reject) == 1
    said = in_one_sentence(capsys.readouterr().err)
    assert re.search(r"is for the model \w{16}, and these embeddings are of \w{16}$", said)
    assert run("search", files["rrs"], files["rrs"], *reject) == 1
    assert "frames dense, and these are of frames rrs" in capsys.readouterr().err
    same = ("search", files["same"], files["same"])
    assert usage_error(*same, "--reject", "--model", mars / "model")
    assert "holds no threshold" in capsys.readouterr().err
    assert usage_error(*same, "--reject")
    assert usage_error(*same, "--model", calibrated)
    assert "go together" in capsys.readouterr().err
    assert usage_error(*same, *reject, "--revision", "main")
    assert run(*same, "--reject", "--model", "nowhere") == 1


# --- real data -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_mars():
    """A part of MARS with its official queries."""
    root = real("mini_mars")
    test = tuple(read_folder(root / "bbox_test"))
    rows = {tracklet.name: row for row, tracklet in enumerate(test)}
    query, gallery = (
        tuple(
            rows[Path(entry["img_paths"][0]).stem.partition("F")[0]]
            for entry in json.loads((root / "splits" / f"{part}.json").read_text())
        )
        for part in ("query", "gallery")
    )
    everything = tuple(sorted(itertools.chain(query, gallery)))
    protocols = (
        Protocol(name="official", query=query, gallery=everything, description=""),
        Protocol(name="without-queries", query=query, gallery=gallery, description=""),
    )
    return Dataset(
        name="mini_mars",
        root=str(root),
        train=tuple(read_folder(root / "bbox_train")),
        test=test,
        protocols={protocol.name: protocol for protocol in protocols},
    )


@pytest.mark.slow
def test_every_query_of_mini_mars_is_valid_with_the_queries_in_the_gallery(mini_mars, tmp_path):
    model = TFCLIP.from_pretrained("tfclip-tiny")
    settings = {"frames": "rrs", "cache": tmp_path}
    (row,) = evaluate_model(model, mini_mars, **settings).rows
    assert (row.result.num_valid_queries, row.result.num_queries) == (20, 20)
    assert (row.num_tracklets, row.num_frames) == (40, 2533)
    (row,) = evaluate_model(model, mini_mars, "without-queries", **settings).rows
    assert (row.result.num_valid_queries, row.result.num_queries) == (14, 20)


@pytest.mark.slow
def test_a_converted_checkpoint_is_evaluated_on_mini_mars(mini_mars, golden, tmp_path):
    checkpoint, folder = tmp_path / "best_model.pth.tar", tmp_path / "model"
    torch.save(golden("state_dict"), checkpoint)
    sizes = ("--clip-length", 4, "--frame-size", 64, 32)
    assert run("convert", checkpoint, folder, *sizes) == 0
    model = TFCLIP.from_pretrained(folder)
    (row,) = evaluate_model(model, mini_mars, frames="rrs").rows
    assert row.result.num_valid_queries == 20
    assert "20 of 20 queries have a match in a gallery of 40" in row.result.protocol
    with pytest.raises(TableError, match="the model knows cameras 0 to 2"):  # of the checkpoint
        evaluate_model(model, mini_mars, use_cameras="both")
