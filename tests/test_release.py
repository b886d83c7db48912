"""What GitHub runs is what .ci/run does, and nothing that it runs can change under our feet."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI = (ROOT / ".ci" / "run").read_text()

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="this tree was handed out without .github")


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def commands(name: str) -> list[str]:
    found = [path for path in WORKFLOWS if path.stem == name]
    return [line for step in steps(found[0]) for line in step.get("run", "").splitlines()]


def test_there_are_workflows_for_tests_docs_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "test"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_hash_with_the_version_beside_it(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.search(rf"uses: {re.escape(action)} # v\d+\.\d+\.\d+$", path.read_text(), re.M)


def test_an_action_has_one_hash_in_all_workflows() -> None:
    used = {step["uses"] for path in WORKFLOWS for step in steps(path) if "uses" in step}
    assert len({action.partition("@")[0] for action in used}) == len(used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_a_job_only_what_it_is_there_for(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {"deploy": {"pages": "write", "id-token": "write"}, "publish": {"id-token": "write"}}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == allowed.get(name), name
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            # What a stranger can write into a title or branch must never be part of a command.
            assert "${{" not in step.get("run", "")
    assert "secrets." not in path.read_text()


def test_the_job_that_publishes_runs_nothing_of_ours() -> None:
    (path,) = (path for path in WORKFLOWS if path.stem == "release")
    publish = load(path)["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"])
    assert not any("checkout" in step["uses"] for step in publish["steps"])


def test_tests_and_releases_run_what_ci_runs() -> None:
    assert ".ci/run" in commands("test")
    assert ".ci/run" in commands("release")
    assert '.ci/package "$work/dist"' in CI
    assert ".ci/package dist" in commands("release")


def test_every_other_command_of_a_workflow_is_one_of_ci() -> None:
    shown = re.sub(r'"\$work/docs"', "build/docs", CI)
    for name in ("test", "docs"):
        for command in commands(name):
            own = command.startswith((".ci/run", ".ci/versions "))
            assert own or command in shown.splitlines(), command


def test_every_python_of_the_classifiers_is_tried_the_first_with_the_lowest_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [re.sub(r".*:: ", "", c) for c in project["classifiers"] if re.search(r":: 3\.\d", c)]
    assert project["requires-python"] == f">={known[0]}"
    (path,) = (path for path in WORKFLOWS if path.stem == "test")
    jobs = load(path)["jobs"]
    tried = {*jobs["everything"]["strategy"]["matrix"]["python"]}
    for name in ("lowest", "newest"):
        steps = jobs[name]["steps"]
        assert steps[-1]["run"] == f".ci/versions {name}"
        tried.add(steps[1]["with"]["python-version"])
    assert jobs["lowest"]["steps"][1]["with"]["python-version"] == known[0]
    assert tried == set(known)


def test_the_lowest_packages_are_those_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"]]
    for extra, more in project["optional-dependencies"].items():
        needs += more if extra != "dev" else []
    asked = {need.replace(">=", "==").strip() for need in needs if not need.startswith("tfclip[")}
    asked = {re.sub(r"\[.*\]", "", need) for need in asked}
    printed = subprocess.run(
        [sys.executable, ROOT / ".ci" / "floors"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(printed) == asked
    assert len(printed) == len({need.partition("==")[0] for need in printed})  # one floor each


@pytest.mark.parametrize("name", ["bug", "feature", "config"])
def test_issue_templates_are_what_github_reads(name: str) -> None:
    form = load(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    if name == "config":
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0


def test_links_of_the_community_files_lead_somewhere() -> None:
    for path in (ROOT / ".github").glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert (path.parent / link).exists(), link
