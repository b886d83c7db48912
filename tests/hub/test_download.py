"""Models on the Hub: which files are asked for, kept and refused."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.hub.hub_server import set_endpoint, set_offline
from tests.hub.saved_models import assert_same, content, make_model, message_of
from tfclip import __version__, hub
from tfclip.errors import WeightsError
from tfclip.model import TFCLIP


def test_a_model_on_the_hub_loads_bit_for_bit(server: Any, model: TFCLIP, saved: Path):
    server.repository("org/reid").commit(content(saved))
    assert_same(model, hub.load(TFCLIP, "org/reid"))
    assert_same(model, TFCLIP.from_pretrained("org/reid"))


def test_the_config_is_asked_for_first_and_in_the_name_of_the_library(server: Any, saved: Path):
    server.repository("org/reid").commit(content(saved))
    hub.load(TFCLIP, "org/reid")
    asked = [request for request in server.requests if request.path.startswith("/org/reid/")]
    assert asked[0].path == "/org/reid/resolve/main/config.json"
    for request in asked:
        assert request.headers["user-agent"].startswith(f"tfclip/{__version__};")
    hub.load(TFCLIP, "org/reid")
    counted = [path for path in server.asked("HEAD") if path.endswith("main/config.json")]
    assert len(counted) == 2, "the Hub counts a load from the cache too"
    contents = [path for path in server.asked("GET") if path.startswith(("/org/", "/large/"))]
    assert len(contents) == 2, "and each file comes once"


def test_a_revision_pins_the_weights(server: Any, tmp_path: Path):
    repository = server.repository("org/reid")
    commits, models = [], [make_model(1), make_model(2), make_model(3)]
    for number, each in enumerate(models):
        hub.save(each, tmp_path / str(number))
        commits.append(repository.commit(content(tmp_path / str(number)), tag=f"v{number}"))
    for number, each in enumerate(models):
        assert_same(each, hub.load(TFCLIP, "org/reid", revision=commits[number]))
        assert_same(each, hub.load(TFCLIP, "org/reid", revision=f"v{number}"))
        found = hub.find("org/reid", revision=f"v{number}")
        assert found.source == f"org/reid@{commits[number]}"
    assert_same(models[-1], hub.load(TFCLIP, "org/reid"))


def test_config_and_weights_come_from_one_commit_even_while_somebody_pushes(
    server: Any, model: TFCLIP, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.repository("org/reid").commit(content(saved))
    hub.save(make_model(1), tmp_path / "newer")
    download = hub.hf_hub_download

    def download_then_push(*args: Any, **options: Any) -> str:
        path = download(*args, **options)
        server.repository("org/reid").commit(content(tmp_path / "newer"))
        return path

    monkeypatch.setattr(hub, "hf_hub_download", download_then_push)
    assert_same(model, hub.load(TFCLIP, "org/reid"))


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.usefixtures("impatient")
def test_a_cached_model_loads_without_a_hub(
    server: Any, model: TFCLIP, saved: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
):
    commit = server.repository("org/reid").commit(content(saved), tag="v1")
    for revision in (None, "v1"):
        hub.load(TFCLIP, "org/reid", revision=revision)
    server.requests.clear()
    if offline:
        set_offline(monkeypatch, True)
    else:
        server.down = True
    for revision in (None, "main", "v1", commit):
        assert_same(model, hub.load(TFCLIP, "org/reid", revision=revision))
    assert not offline or not server.requests


def test_an_uncached_model_offline_says_what_to_do(server: Any, monkeypatch: pytest.MonkeyPatch):
    set_offline(monkeypatch, True)
    with pytest.raises(WeightsError) as error:
        hub.load(TFCLIP, "org/reid", revision="v1")
    assert message_of(error) == (
        "cannot load org/reid: config.json is not in the cache and HF_HUB_OFFLINE is set; "
        "when online, run: hf download org/reid --revision v1"
    )
    assert not server.requests


@pytest.mark.usefixtures("impatient")
def test_a_hub_that_cannot_be_reached_is_said(server: Any, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    set_endpoint(monkeypatch, nobody)
    with pytest.raises(WeightsError, match="check the connection, or set HF_ENDPOINT") as error:
        hub.load(TFCLIP, "org/reid")
    assert nobody in message_of(error)


@pytest.mark.usefixtures("impatient")
def test_a_hub_that_is_down_is_said(server: Any):
    server.down = True
    with pytest.raises(WeightsError, match="does not answer as a Hub") as error:
        hub.load(TFCLIP, "org/reid")
    message_of(error)


def test_a_hub_that_lacks_the_file_says_it_is_no_tfclip_model(server: Any, saved: Path):
    files = content(saved)
    server.repository("org/bert").commit({"pytorch_model.bin": b"x"})
    server.repository("org/half").commit({"config.json": files["config.json"]})
    for repo, name in (("org/bert", "config.json"), ("org/half", "model.safetensors")):
        with pytest.raises(WeightsError) as error:
            hub.load(TFCLIP, repo)
        assert message_of(error) == (
            f"cannot load {repo}: it has no {name}, so it is not a tfclip model"
        )


@pytest.mark.parametrize(
    ("repo", "options", "token", "reason"),
    [
        ("org/none", {}, None, "there is no http://.*/org/none, or it is private"),
        ("org/none", {}, "hf_reader", "there is no http://.*/org/none, or it is private"),
        ("org/private", {}, None, "is private; in that case log in with `hf auth login`, or"),
        ("org/gated", {}, None, "it is gated; accept its terms on http://.*/org/gated, then log"),
        ("org/reid", {}, "hf_wrong", "the Hub refuses the access token; log in"),
        ("org/reid", {"revision": "v9"}, None, "it has no revision 'v9'"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(
    server: Any,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    options: dict[str, Any],
    token: str | None,
    reason: str,
):
    for name in ("reid", "private", "gated"):
        flags = {flag: flag == name for flag in ("private", "gated")}
        server.repository(f"org/{name}", **flags).commit(content(saved))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError, match=f"cannot load {repo}: .*{reason}") as error:
        hub.load(TFCLIP, repo, **options)
    message_of(error)


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_token_opens_private_and_gated_models(
    server: Any, model: TFCLIP, saved: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    server.repository("org/reid", **{kind: True}).commit(content(saved))
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert_same(model, hub.load(TFCLIP, "org/reid"))


@pytest.mark.usefixtures("impatient")
def test_a_download_that_breaks_off_is_not_taken_for_the_file(
    server: Any, model: TFCLIP, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    server.repository("org/reid").commit(content(saved))
    server.cuts = {"/large": [1_000]}
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    with contextlib.suppress(WeightsError):  # huggingface_hub 1.0 does not try again by itself
        hub.load(TFCLIP, "org/reid")
    assert server.cuts == {"/large": []}
    assert_same(model, hub.load(TFCLIP, "org/reid"))


@pytest.mark.usefixtures("impatient")
def test_a_download_that_never_gets_through_is_one_sentence(server: Any, saved: Path):
    server.repository("org/reid").commit(content(saved))
    server.cuts = {"config.json": [0] * 100}
    with pytest.raises(WeightsError, match=r"config\.json could not be downloaded \(") as error:
        hub.load(TFCLIP, "org/reid")
    message_of(error)
    snapshots = Path(constants.HF_HUB_CACHE, "models--org--reid", "snapshots")
    assert not list(snapshots.glob("*/*")), "no part of a file is taken for the file"
    server.cuts.clear()
    hub.load(TFCLIP, "org/reid")
