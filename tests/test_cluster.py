"""Encoding on a cluster is encoding here, whatever dies on the way."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import tfclip.cluster
import tfclip.groups
from tfclip import cli
from tfclip.cluster import ClusterEncoder, RayCluster
from tfclip.data import EmbeddingTable, SyntheticTracklets, Tracklet, read_folder
from tfclip.errors import FrameError, MissingExtraError
from tfclip.groups import GroupEncoder
from tfclip.jobs import encode_to_file
from tfclip.reading import Reading

# Ray warns of its own use of what it is about to change.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")

CLUSTER = RayCluster(actors=2)


@pytest.fixture(scope="module")
def tracklets(tmp_path_factory) -> list[Tracklet]:
    root = tmp_path_factory.mktemp("crops")
    for tracklet in SyntheticTracklets(20, 2, 1, num_frames=4, frame_size=(32, 16)):
        folder = root / f"{tracklet.person:02d}" / str(tracklet.camera)
        folder.mkdir(parents=True)
        for i, frame in enumerate(tracklet.frames):
            Image.fromarray(frame).save(folder / f"{i}.png")
    return read_folder(root, "{person}/{camera}")


@pytest.fixture(autouse=True)
def _small_groups_and_one_thread(monkeypatch):
    monkeypatch.setattr(tfclip.groups, "GROUP_FRAMES", 8)  # 20 groups of 2 tracklets
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the actors
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def _ray():
    """Start Ray once, the way a job does that finds it not running."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from tfclip import TFCLIP

    encoder = GroupEncoder(TFCLIP.from_pretrained("tfclip-tiny"), "dense", False, Reading(), 64, 0)
    ClusterEncoder(encoder, CLUSTER)._start(ray)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.skipif(sys.platform != "linux", reason="actors are found in /proc")
def test_nothing_is_lost_or_doubled_when_an_actor_is_killed(
    tiny_model, tracklets, tmp_path, monkeypatch
):
    killed: list[int] = []
    save = EmbeddingTable.save

    def save_and_kill(table: EmbeddingTable, path: Path) -> None:
        save(table, path)
        if not killed:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(EmbeddingTable, "save", save_and_kill)
    out = tmp_path / "out.safetensors"
    table = encode_to_file(tiny_model, tracklets, out, cluster=CLUSTER)
    monkeypatch.undo()
    assert killed
    assert table.names == tuple(tracklet.name for tracklet in tracklets)
    expected = encode_to_file(tiny_model, tracklets, tmp_path / "expected.safetensors")
    torch.testing.assert_close(table.embeddings, expected.embeddings, atol=1e-5, rtol=0)


def actors() -> list[int]:
    """Return the processes of Ray that hold a model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if command.startswith(b"ray::MapWorker"):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_job_goes_on_on_a_cluster_after_an_error_and_says_it_in_one_sentence(
    tiny_model, tracklets, tmp_path
):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    broken = [*tracklets, Tracklet(name="zz", frames=(str(damaged),))]
    out = tmp_path / "out.safetensors"
    with pytest.raises(FrameError, match=r"damaged\.png is not a readable image"):
        encode_to_file(tiny_model, broken, out, cluster=CLUSTER)
    assert not out.exists()
    Image.new("RGB", (16, 32)).save(damaged)
    table = encode_to_file(tiny_model, broken, out, cluster=CLUSTER)
    assert len(table) == len(tracklets) + 1


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_the_command_line_writes_the_same_bytes_with_ray(tracklets, tmp_path, capsys):
    root = Path(tracklets[0].frames[0]).parents[2]
    outs = [tmp_path / "here.safetensors", tmp_path / "there.safetensors"]
    command = ["encode", str(root), "--layout", "{person}/{camera}"]
    cli.main([*command, "--out", str(outs[0])])
    cli.main([*command, "--out", str(outs[1]), "--ray", "--actors", "2"])
    assert "40 tracklets of 160 frames" in capsys.readouterr().out
    assert outs[1].read_bytes() == outs[0].read_bytes()
    assert not outs[1].with_name("there.safetensors.parts").exists()


def test_finished_groups_are_not_sent_again(tiny_model, tracklets, tmp_path, monkeypatch):
    """Without Ray: all groups but those whose parts are there go to the cluster."""
    sent: list[int] = []

    def encode_here(self, groups, tracklets, count):
        for number, encoded in enumerate(self.encoder.encode(groups, tracklets, count)):
            if number == 3 and not sent:
                sent.append(0)
                raise KeyboardInterrupt
            sent.append(1) if sent else None
            yield encoded

    monkeypatch.setattr(ClusterEncoder, "encode", encode_here)
    out = tmp_path / "out.safetensors"
    with pytest.raises(KeyboardInterrupt):
        encode_to_file(tiny_model, tracklets, out, cluster=CLUSTER)
    encode_to_file(tiny_model, tracklets, out, cluster=CLUSTER)
    assert sum(sent) == 20 - 3


def test_what_is_wrong_is_said_before_ray_starts(tiny_model, tracklets, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="actors must be at least 1, got 0"):
        RayCluster(actors=0)
    with pytest.raises(SystemExit):
        cli.main(["encode", "x", "--out", "y.safetensors", "--actors", "2"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tfclip\[ray\]'"):
        encode_to_file(tiny_model, tracklets, tmp_path / "out.safetensors", cluster=CLUSTER)


class RayHere:
    """What is used of Ray, in this process: what it does with rows, from the last to the first."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        context = SimpleNamespace(get_current=SimpleNamespace)
        self.data = SimpleNamespace(DataContext=context, from_items=self._from_items)
        self._rows: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return bool(self.started)

    def init(self, **options: Any) -> None:
        self.started.append(options)

    def shutdown(self) -> None:
        self.started.append({})

    def put(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def get(self, reference: bytes) -> Any:
        return pickle.loads(reference)

    def _from_items(self, rows: list[dict[str, Any]], *, override_num_blocks: int) -> RayHere:
        assert override_num_blocks == len(rows)
        self._rows = rows
        return self

    def map(self, actor: Any, *, fn_constructor_args: tuple[Any, ...], **options: Any) -> RayHere:
        self.options = options
        self._rows = list(map(actor(*fn_constructor_args), self._rows[::-1]))
        return self

    def iter_rows(self) -> Any:
        return iter(self._rows)


@pytest.fixture
def ray_here(monkeypatch) -> RayHere:
    ray = RayHere()
    monkeypatch.setattr(tfclip.cluster, "_import_ray", lambda: ray)
    return ray


def test_a_cluster_may_finish_groups_in_any_order(tiny_model, tracklets, tmp_path, ray_here):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    encode_to_file(tiny_model, tracklets, here)
    encode_to_file(tiny_model, tracklets, there, cluster=CLUSTER)
    assert there.read_bytes() == here.read_bytes()
    started, stopped = ray_here.started
    assert started["num_cpus"] == 2
    assert not stopped
    assert ray_here.options == {"concurrency": 2, "num_cpus": 1, "num_gpus": None}


def test_an_actor_gets_a_few_groups_of_a_long_job_at_once(
    tiny_model, tracklets, tmp_path, ray_here, monkeypatch
):
    monkeypatch.setattr(tfclip.groups, "GROUP_FRAMES", 4)  # 40 groups of 1 tracklet
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    encode_to_file(tiny_model, tracklets, here)
    for actors, rows in ((1, 10), (2, 20), (3, 40)):  # a fair share is 5, 2, 1; 4 are the most
        there.unlink(missing_ok=True)
        encode_to_file(tiny_model, tracklets, there, cluster=RayCluster(actors=actors))
        assert len(ray_here._rows) == rows
        assert there.read_bytes() == here.read_bytes()


def test_groups_that_an_actor_finished_before_an_error_are_kept(
    tiny_model, tracklets, tmp_path, ray_here, monkeypatch
):
    monkeypatch.setattr(tfclip.groups, "GROUP_FRAMES", 4)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    broken = [*tracklets]
    broken[-1] = Tracklet(name="zz", frames=(str(damaged),))  # of four together, which come first
    out = tmp_path / "out.safetensors"
    with pytest.raises(FrameError, match=r"damaged\.png is not a readable image"):
        encode_to_file(tiny_model, broken, out, cluster=RayCluster())
    assert len(list(out.with_name("out.safetensors.parts").glob("*.safetensors"))) == 3


def test_joining_a_cluster_asks_for_none_of_what_its_owner_decides(
    tiny_model, tracklets, tmp_path, ray_here
):
    cluster = RayCluster(address="ray://head:10001", actors=3, cpus_per_actor=2)
    encode_to_file(tiny_model, tracklets, tmp_path / "out.safetensors", cluster=cluster)
    joined = ray_here.started[0]
    assert joined["address"] == "ray://head:10001"
    assert not joined.keys() & {"num_cpus", "object_store_memory", "include_dashboard"}
    assert (ray_here.options["concurrency"], ray_here.options["num_cpus"]) == (3, 2)


def test_all_groups_of_one_video_go_to_one_actor(tiny_model, tracklets, tmp_path, ray_here):
    """So the video is decoded once, as it is here."""
    video = tmp_path / "street"
    video.mkdir()
    for i in range(4):
        Image.effect_noise((48, 40), 100 + i).convert("RGB").save(video / f"{i}.png")
    tracks = [
        Tracklet(
            name=f"street/{i}",
            frames=str(video),
            frame_indices=(0, 1, 2, 3),
            boxes=((5.0 * i, 2.0, 20.0, 30.0),) * 4,
        )
        for i in range(4)
    ]
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    encode_to_file(tiny_model, [*tracks, *tracklets[:4]], here)
    encode_to_file(tiny_model, [*tracks, *tracklets[:4]], there, cluster=CLUSTER)
    assert there.read_bytes() == here.read_bytes()
    assert len(ray_here._rows) == 1 + 2  # two groups of the video together, and two of crops


def test_the_command_line_says_how_many_cores_an_actor_has(tracklets, tmp_path, ray_here):
    root = Path(tracklets[0].frames[0]).parents[2]
    command = ["encode", str(root), "--layout", "{person}/{camera}", "--ray", "--actors", "3"]
    out = ["--device", "cpu", "--out", str(tmp_path / "out.safetensors")]
    assert cli.main([*command, *out, "--cpus-per-actor", "2"]) == 0
    assert ray_here.started[0]["num_cpus"] == 6
    assert ray_here.options == {"concurrency": 3, "num_cpus": 2, "num_gpus": None}
    assert torch.get_num_threads() == 2  # of this actor


def test_actors_look_for_their_device_and_this_process_does_not(
    tiny_model, tracklets, tmp_path, ray_here, monkeypatch, capsys
):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    encode_to_file(tiny_model, tracklets, here)
    looked: list[str] = []
    monkeypatch.setattr(tfclip.cluster, "check_device", looked.append)
    cluster = RayCluster(address="auto", device="cpu")
    encode_to_file(tiny_model, tracklets, there, cluster=cluster)
    assert (there.read_bytes() == here.read_bytes(), looked) == (True, ["cpu"])

    def refuse(device: str) -> None:
        raise ValueError(f"device {device!r} cannot be used: no GPU is here")

    monkeypatch.setattr(tfclip.cluster, "check_device", refuse)
    root = Path(tracklets[0].frames[0]).parents[2]
    command = ["encode", str(root), "--layout", "{person}/{camera}", "--ray", "ray://head:10001"]
    assert cli.main([*command, "--device", "cuda:1", "--out", str(tmp_path / "o.safetensors")]) == 1
    assert ray_here.options["num_gpus"] == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "tfclip: an actor of the cluster: device 'cuda' cannot be used: no GPU is here"


def test_a_model_with_8_bit_products_is_not_sent_to_a_gpu(tiny_model, monkeypatch):
    monkeypatch.setattr(type(tiny_model), "precision", "int8")
    assert RayCluster(device="cpu").device_of(tiny_model) == "cpu"
    with pytest.raises(ValueError, match="8-bit products must stay on a CPU, got 'cuda'"):
        RayCluster(device="cuda").device_of(tiny_model)


def test_an_error_of_an_actor_is_raised_here_as_it_was_there(
    tiny_model, tracklets, tmp_path, ray_here
):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    broken = [*tracklets, Tracklet(name="zz", frames=(str(damaged),))]
    with pytest.raises(FrameError, match=r"damaged\.png is not a readable image"):
        encode_to_file(tiny_model, broken, tmp_path / "out.safetensors", cluster=CLUSTER)
    assert ray_here.started[-1] == {}  # and what was started is stopped


def test_without_groups_no_cluster_is_asked(tiny_model, ray_here):
    encoder = GroupEncoder(tiny_model, "dense", False, Reading(), 64, 0)
    assert list(ClusterEncoder(encoder, CLUSTER).encode([], [], print)) == []
    assert not ray_here.started
