"""``tfclip`` without work to do: its help, how fast it starts, and wrong usage."""

import subprocess
import sys
import time

import pytest

from tests.cli.commands import ROOT, run, usage_error


def tfclip(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "tfclip", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        **options,
    )


def test_help_answers_in_half_a_second():
    times = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        start = time.perf_counter()
        done = tfclip("--help")
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert all(command in done.stdout for command in ("encode", "search", "convert", "demo"))
    assert min(times) < 0.5


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tfclip.cli import main\n"
        "try: main(['encode', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["encode", "search", "evaluate", "convert", "demo"])
def test_each_command_explains_itself_on_a_screen_with_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"example:\n  tfclip {command} " in text
    assert len(text.splitlines()) <= 60


def test_a_wrong_usage_exits_with_two(capsys):
    assert usage_error()
    assert usage_error("fly")
    assert usage_error("encode", "x")
    assert usage_error("search", "a.safetensors", "b.safetensors", "--top", "0")
    assert usage_error("search", "a.safetensors", "b.safetensors", "--picture", "x.docx")
    assert usage_error("encode", "x", "--out", "o.safetensors", "--layout", "{persn}")
    assert "layout must be" in capsys.readouterr().err
