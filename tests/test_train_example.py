"""The training scripts: they run, save what loads, and go on after a kill as if nothing was."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tfclip import TFCLIP
from tfclip.data import Split, SyntheticTracklets

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL_MODEL = [
    'model.backbone_options={"width": 32, "layers": 1, "heads": 2, "patch_size": 8, '
    '"output_dim": 16}',
    "model.temporal_heads=2",
    "model.clip_length=4",
    "recipe.identities_per_batch=2",
    "recipe.tracklets_per_identity=2",
]
SMALL_DATA = [
    "synthetic.num_identities=4",
    "synthetic.num_cameras=2",
    "synthetic.tracklets_per_camera=2",
    "synthetic.num_frames=5",
]
EPOCHS = 8


@pytest.fixture(scope="module", autouse=True)
def _examples_can_be_imported():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def arguments(out: Path) -> list[str]:
    epochs = f"recipe.epochs={EPOCHS}"
    return [
        *("synthetic", "--preset", "tiny", "--init", "random", "--out", str(out)),
        *("--ema", "0.5", "--set", *SMALL_MODEL, *SMALL_DATA, epochs),
    ]


def run_until_killed(out: Path) -> None:
    """Start the same training in another process and kill it after its first checkpoint."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / "train.py"), *arguments(out)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (out / "last.pt").exists():
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()


@pytest.mark.slow
def test_a_training_that_was_killed_ends_with_the_same_bits(tmp_path):
    train = importlib.import_module("train")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train.main(arguments(whole))
    run_until_killed(killed)
    finished = torch.load(killed / "last.pt", weights_only=True)["log"]
    assert 1 <= len(finished) < EPOCHS
    train.main(arguments(killed))
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    expected, actual = (torch.load(out / "last.pt", weights_only=True) for out in (whole, killed))
    assert actual["log"] == expected["log"]
    for name, value in expected["training"].items():
        assert torch.equal(actual["training"][name], value), name
    for name, moments in expected["optimizer"]["state"].items():
        assert torch.equal(actual["optimizer"]["state"][name]["exp_avg"], moments["exp_avg"]), name
    with pytest.raises(SystemExit, match="other settings"):
        train.main([*arguments(killed), "model.clip_length=3"])


@pytest.mark.slow
def test_a_minute_of_the_bundled_models_training_already_finds_unseen_people(tmp_path):
    train = importlib.import_module("train")
    sizes = {"width": 64, "layers": 3, "heads": 4, "patch_size": 8, "output_dim": 48}
    shorter = [
        *(f"model.backbone_options={json.dumps(sizes)}", "model.frame_size=[32, 16]"),
        *("tower.groups=16", "tower.steps=300", "recipe.epochs=2", "recipe.milestones=[1]"),
        *("synthetic.frame_size=[32, 16]", "synthetic.num_identities=32"),
    ]
    arguments = ("synthetic", "--preset", "tiny", "--init", "tiny", "--evaluate-every", "1")
    train.main([*arguments, "--out", str(tmp_path), "--set", *shorter])
    first, last = json.loads((tmp_path / "log.json").read_text())
    assert last["loss"] < first["loss"]
    assert "128 of 128 queries" in last["protocol"]
    model = TFCLIP.from_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    untrained = TFCLIP(model.config).eval()
    people = list(
        SyntheticTracklets(32, 4, 1, frame_size=(32, 16), first_identity=32, first_camera=12)
    )
    rows = tuple(range(len(people)))
    everyone = Split(rows, rows)
    trained, chance = (train.evaluate(rival, people, everyone) for rival in (model, untrained))
    assert trained.mAP == pytest.approx(last["mAP"])
    assert trained.rank(1) > chance.rank(1) + 0.3
    assert trained.mAP > 3 * chance.mAP


@pytest.mark.slow
def test_a_public_data_set_is_trained_and_tested_on_by_its_protocol(tmp_path):
    train = importlib.import_module("train")
    root, names = tmp_path / "Market-1501-v15.09.15", {}
    people = SyntheticTracklets(4, 3, 1, num_frames=1, frame_size=(64, 32))
    for tracklet in people:
        part = "bounding_box_train" if tracklet.person < 2 else "bounding_box_test"
        places = [part] if tracklet.camera or tracklet.person < 2 else ["query", part]
        for place in places:
            folder = root / place
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{tracklet.person + 1:04d}_c{tracklet.camera + 1}s1_000001_00.jpg"
            Image.fromarray(tracklet.frames[0]).save(folder / name)
            names.setdefault(place, []).append(name)
    out = tmp_path / "out"
    train.main(
        [
            *("market1501", "--root", str(root), "--init", "random", "--out", str(out)),
            *("--evaluate-every", "1", "--set", *SMALL_MODEL, "recipe.epochs=1"),
        ]
    )
    (entry,) = json.loads((out / "log.json").read_text())
    assert f"2 of {len(names['query'])} queries" in entry["protocol"]
    assert f"gallery of {len(names['bounding_box_test'])}" in entry["protocol"]


@pytest.mark.slow
def test_a_folder_of_crops_is_trained_on_tested_and_saved(tmp_path):
    train = importlib.import_module("train")
    people = SyntheticTracklets(3, 2, 2, num_frames=5, frame_size=(64, 32))
    people.write(tmp_path / "train")
    SyntheticTracklets(3, 2, 1, num_frames=5, frame_size=(64, 32), first_identity=3).write(
        tmp_path / "test"
    )
    out = tmp_path / "out"
    train.main(
        [
            *(str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--out", str(out)),
            *("--layout", "{person}/{camera}/{tracklet}", "--init", "random", "--cameras"),
            *("--bf16", "--gradient-checkpointing", "--accumulate", "2", "--jitter"),
            *("--evaluate-every", "1", "--select-on-test"),
            *("--set", *SMALL_MODEL, "recipe.epochs=2", "objective.memory_momentum=0.9"),
        ]
    )
    log = json.loads((out / "log.json").read_text())
    assert [entry["epoch"] for entry in log] == [1, 2]
    assert all(math.isfinite(entry["loss"]) and 0 <= entry["mAP"] <= 1 for entry in log)
    assert "6 of 6 queries" in log[-1]["protocol"]
    for name in ("model", "best-on-test"):
        model = TFCLIP.from_pretrained(out / name)
        assert model.config.num_cameras == 2
        assert "train.py" in model.config.provenance["trained_by"]


@pytest.mark.parametrize(
    ("cameras", "options", "sentence"),
    [
        (("", "1", "0", "1"), (), "query_cameras must be known, got None at position 0"),
        (("0", "0", "0", "0"), (), "every match is in the query's own camera"),
        (("0", "2", "0", "1"), ("--cameras",), "told cameras 0 to 1, and the test set has 2"),
    ],
)
def test_a_test_set_that_cannot_be_evaluated_on_is_refused_before_training(
    tmp_path, cameras, options, sentence
):
    train = importlib.import_module("train")
    (tmp_path / "none.png").write_bytes(b"")  # no frame is looked at
    for name, views in (("train", ("0", "1", "0", "1")), ("test", cameras)):
        rows = [f"t{i},none.png,p{i // 2},{camera}" for i, camera in enumerate(views)]
        lines = ["tracklet,path,person,camera", *rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    tables = (str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv"))
    model = ("--init", "random", "--out", str(tmp_path / "out"), "--set", *SMALL_MODEL)
    with pytest.raises(SystemExit, match=sentence):
        train.main([*tables, *options, *model])
    assert not (tmp_path / "out" / "last.pt").exists()


def test_pre_training_gives_the_same_tower_for_the_same_seed(monkeypatch):
    script = importlib.import_module("pretrain")
    monkeypatch.setattr(script, "GROUP", 3)
    config = script.TINY.replace(
        backbone_options={"width": 32, "layers": 1, "heads": 2, "patch_size": 16},
        temporal_heads=2,
    )
    first, second = (script.pretrain(config, groups=1, steps=1, cue="none") for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert "pretrain.py" in first.config.provenance["tower"]


def test_contrastive_loss_is_the_mean_over_positives_of_their_log_share():
    script = importlib.import_module("pretrain")
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 0, 0, 2]
    unit = torch.nn.functional.normalize(features, dim=1)
    of_anchors = []
    for i in (0, 2, 3):  # 1 and 4 have no partner
        others = [j for j in range(5) if j != i]
        scores = {j: float(unit[i] @ unit[j]) / script.TEMPERATURE for j in others}
        whole = math.log(sum(math.exp(score) for score in scores.values()))
        partners = [j for j in others if labels[j] == labels[i]]
        of_anchors.append(sum(whole - scores[j] for j in partners) / len(partners))
    loss = script.contrastive_loss(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(sum(of_anchors) / 3, rel=1e-5)
