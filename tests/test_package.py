"""What holds for the package as a whole: one version, silent imports, names that resolve."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tfclip
from tfclip import cli

ROOT = Path(tfclip.__file__).parents[1]

FIXED_NAMES = {
    "CLIPMemory",
    "MemoryDiffusion",
    "SequenceSpecificPrompt",
    "TFCLIP",
    "TFCLIPConfig",
    "TFCLIPOutput",
    "TemporalMemoryConstruction",
    "TemporalMemoryDiffusion",
    "convert",
    "data",
}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new process that sees the same tfclip, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_stands_in_one_place(project: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", tfclip.__version__)
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "tfclip/__init__.py"


def test_importing_is_silent_and_loads_nothing_heavy() -> None:
    heavy = {"huggingface_hub", "numpy", "open_clip", "timm", "torch"}
    result = run_python(f"import sys, tfclip; print(*{heavy} & set(sys.modules), end='')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


NO_SOCKETS = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(refuse)
"""


def test_sockets_can_be_refused() -> None:  # so that the next test means something
    result = run_python(NO_SOCKETS + "import socket; socket.socket()")
    assert "RuntimeError: socket.__new__" in result.stderr


@pytest.mark.slow
def test_loading_every_public_name_is_silent_and_opens_no_socket() -> None:
    result = run_python(
        NO_SOCKETS + "import tfclip\nfor name in tfclip.__all__: getattr(tfclip, name)"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_fixed_names_are_public() -> None:
    assert set(tfclip.__all__) >= FIXED_NAMES
    assert set(dir(tfclip)) >= FIXED_NAMES


@pytest.mark.parametrize("name", tfclip.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(tfclip, name)
    assert value.__name__.rpartition(".")[2] == name
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tfclip' has no attribute 'TFCLIPS'"):
        _ = tfclip.TFCLIPS  # pyright: ignore[reportAttributeAccessIssue]


def test_help_of_the_command_line_does_not_import_torch() -> None:
    result = run_python(
        "import runpy, sys\n"
        "sys.argv = ['tfclip', '--help']\n"
        "try:\n"
        "    runpy.run_module('tfclip', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "    sys.exit(end.code or ' '.join(heavy) or 0)\n"
        "sys.exit('the command line did not end by itself')\n"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: tfclip")


def test_the_console_script_is_the_same_command_line(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"tfclip": f"{cli.__name__}:{cli.main.__name__}"}


def test_every_extra_that_a_message_names_exists(project: dict[str, Any]) -> None:
    named = {
        extra
        for path in Path(tfclip.__file__).parent.rglob("*.py")
        for extra in re.findall(r"tfclip\[(\w+)\]", path.read_text())
    }
    assert named
    assert named <= set(project["project"]["optional-dependencies"])


def test_the_extra_all_holds_every_extra_for_users(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.findall(r"\w+", everything)) - {"tfclip"} == set(extras) - {
        "all",
        "browser",
        "test",
        "dev",
    }


def test_ruff_has_one_version_here_and_in_pre_commit(project: dict[str, Any]) -> None:
    (pin,) = [r for r in project["project"]["optional-dependencies"]["dev"] if "ruff" in r]
    hooks = (Path(__file__).parents[1] / ".pre-commit-config.yaml").read_text()
    assert f"ruff-pre-commit\n    rev: v{pin.removeprefix('ruff==')}\n" in hooks
