"""Pushing a model, and how a user meets the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.hub.saved_models import assert_same, content, make_model, message_of
from tfclip import hub
from tfclip.errors import SaveError
from tfclip.model import TFCLIP

# The Hub: writing


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub 2.4 about its own upload
@pytest.mark.parametrize("large", [True, False])
def test_a_pushed_model_loads_back_bit_for_bit(
    server: Any, model: TFCLIP, monkeypatch: pytest.MonkeyPatch, large: bool
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a store that this Hub has not
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    server.large = large
    commit = hub.push(model, "org/new")
    assert set(server.repositories["org/new"].commits[commit]) == {
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert bool(server.asked("PUT")) == large
    assert_same(model, hub.load(TFCLIP, "org/new"))
    assert_same(model, hub.load(TFCLIP, "org/new", revision=commit))


def test_each_push_is_one_commit_that_pins_its_weights(server: Any):
    models = [make_model(1), make_model(2)]
    commits = [each.push_to_hub("org/new", token="hf_writer") for each in models]
    assert list(server.repositories["org/new"].commits)[1:] == commits
    for commit, each in zip(commits, models, strict=True):
        assert_same(each, hub.load(TFCLIP, "org/new", revision=commit))


def test_a_readme_on_the_hub_stays_and_a_new_one_names_the_repository(server: Any, model: TFCLIP):
    server.repository("org/mine").commit({"README.md": b"mine"})
    for repo in ("org/mine", "org/new"):
        hub.push(model, repo, token="hf_writer")
    pushed = {
        repo: repository.commits[repository.names["main"]]["README.md"]
        for repo, repository in server.repositories.items()
    }
    assert pushed["org/mine"] == b"mine"
    assert b'TFCLIP.from_pretrained("org/new")' in pushed["org/new"]


def test_a_push_can_make_a_private_repository_and_a_branch(server: Any, model: TFCLIP):
    commit = hub.push(model, "org/new", private=True, revision="trial", token="hf_writer")
    repository = server.repositories["org/new"]
    assert repository.private
    assert repository.names["trial"] == commit != repository.names["main"]


@pytest.mark.parametrize("token", [None, "hf_reader", "hf_wrong"])
def test_a_push_without_the_right_token_says_so(server: Any, model: TFCLIP, token: str | None):
    with pytest.raises(SaveError, match="the access token may not write there") as error:
        hub.push(model, "org/new", token=token)
    assert message_of(error).startswith("cannot push to org/new: ")
    assert not server.repositories


@pytest.mark.usefixtures("impatient")
def test_a_push_to_a_hub_that_is_down_says_so(server: Any, model: TFCLIP):
    server.down = True
    with pytest.raises(SaveError, match=r"answers with status 503 \(the hub is having a rest\)"):
        hub.push(model, "org/new", token="hf_writer")


@pytest.mark.parametrize("repo", ["new", "a/b/c", "", "org/new model", "org/a--b"])
def test_a_push_to_something_that_is_no_hub_id_is_refused(model: TFCLIP, repo: str):
    with pytest.raises(ValueError, match="repo_id must be of the form 'org/name'"):
        hub.push(model, repo)


# As a user meets it


@pytest.mark.slow
def test_a_user_sets_a_mirror_a_token_and_then_goes_offline(
    server: Any, saved: Path, tmp_path: Path
):
    """In processes of their own, since huggingface_hub reads these variables when imported."""
    server.repository("org/reid", private=True).commit(content(saved))
    program = """if True:
        import tfclip
        model = tfclip.TFCLIP.from_pretrained("org/reid")
        for action in tfclip.TFCLIP.from_pretrained, model.push_to_hub:
            try:
                action("org/other")
            except tfclip.errors.TFCLIPError as error:
                print(error)
    """
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)

    def run(**changes: str) -> tuple[list[str], str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env={**environment, **changes},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    log_in = "log in with `hf auth login`, or set HF_TOKEN to an access token of yours"
    said, _ = run(HF_TOKEN="hf_reader")  # stderr has progress bars
    assert said == [
        f"cannot load org/other: there is no {server.url}/org/other, or it is private; "
        f"in that case {log_in}",
        f"cannot push to org/other: the access token may not write there (status 403); {log_in}",
    ]
    server.requests.clear()
    (load_error, push_error), stderr = run(HF_HUB_OFFLINE="1")
    assert load_error == (
        "cannot load org/other: config.json is not in the cache and HF_HUB_OFFLINE is set; "
        "when online, run: hf download org/other"
    )
    assert push_error.startswith(f"cannot push to org/other: {server.url} cannot be reached")
    assert "offline mode is enabled" in push_error
    assert stderr == ""
    assert not server.requests
