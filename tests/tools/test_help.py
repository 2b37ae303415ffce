"""`--help` of every script: what each flag does, its default, examples that work, lines that fit the terminal."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils.cli import ArgumentParser

NO_DEFAULT = (None, False, argparse.SUPPRESS)
PATTERNS = ("*.py", "models/*.py", "eval/*.py", "tools/*.py", "benchmarks/*.py")
FILES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern) if " ArgumentParser(" in path.read_text())
SCRIPTS = ["train_restr.py", *(str(path.relative_to(ROOT)) for path in FILES)]
WITHOUT_TORCH = ("build_vocab.py", "build_batches.py", "eval/plot.py", "tools/check_data.py", "tools/make_shapes.py")


@pytest.fixture
def parser(request, monkeypatch) -> argparse.ArgumentParser:
    """The parser of a script, which is run up to the point where it parses."""
    built = []

    def stop(parser, *arguments):
        built.append(parser)
        raise SystemExit

    monkeypatch.setattr(sys, "argv", [request.param])
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(ArgumentParser, "parse_args", stop)
        runpy.run_path(str(ROOT / request.param), run_name="__main__")
    return built[0]


every_script = pytest.mark.parametrize("parser", SCRIPTS, ids=str, indirect=True)


def examples(parser: argparse.ArgumentParser) -> list[list[str]]:
    """The arguments of each command in the description that runs the script itself."""
    script = "models.convert" if "models.convert" in parser.prog else parser.prog
    description = parser.description.replace("\\\n", "")
    commands = re.findall(rf"^    .*?{re.escape(script)}\b(.*)", description, re.M)
    return [shlex.split(command, comments=True) for command in commands]


@every_script
def test_each_flag_says_what_it_does(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = " ".join(parser.format_help().split())
    for action in (action for action in parser._actions if action.help is not argparse.SUPPRESS):
        name = "/".join(action.option_strings) or action.dest
        assert action.help and len(action.help) > 4, name
        given = not any(action.default is nothing for nothing in NO_DEFAULT) and not action.required
        assert not given or "default" in action.help or f"{action.help} (default: " in shown, name
    assert not re.search(r"\(default: (None|False|True|\(|\[|/)", shown), shown


@every_script
def test_lines_fit_the_terminal(parser, monkeypatch):
    """Those of the description stay as they are, to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = parser.format_help().replace(parser.description.strip("\n"), "").splitlines()
    assert [line for line in lines if len(line) >= 80] == []
    assert [line for line in parser.description.splitlines() if len(line) > 120] == []


@every_script
def test_examples_are_accepted(parser):
    found = examples(parser)
    assert found, "the description shows no command"
    for arguments in found:
        parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("train_restr.py --data_dir x --adamw", "--adamW"),
        ("train_restr.py --data-dirr=x", "--data_dir"),  # and not that --data_dir is missing
        ("train_restr.py --data_dir x --fusion indirct", "indirect"),
        ("eval/evaluate.py --data_dir x --checkpoint x --input-sise 64", "--input_size"),
        ("build_vocab.py -d uncc", "unc"),
        ("build_batches.py -d RefCOCO+ -t train", "refcoco+"),
        ("tools/check_data.py --depe", "--deep"),
    ],
)
def test_what_is_nearly_right_is_told(command, meant):
    script, *arguments = command.split()
    done = subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"did you mean {meant}?" in done.stderr


@pytest.mark.parametrize("arguments", [["--zzzz", "4"], ["extra"], ["--bat", "4", "--log", "x"], ["--lr", "--1"]])
def test_what_is_far_off_suggests_nothing(arguments, capsys):
    """Nor does what begins as a flag does, which argparse takes for it."""
    parser = ArgumentParser()
    for flag in ("--batch_size", "--log_every", "--lr"):
        parser.add_argument(flag, type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert "error: " in (said := capsys.readouterr().err) and "did you mean" not in said


@pytest.mark.parametrize("script", WITHOUT_TORCH)
def test_help_of_the_preparation_needs_no_torch(script, tmp_path):
    """It is answered from any folder, at once, by the scripts that have no use for PyTorch."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch is imported')")
    command, environment = [sys.executable, ROOT / script, "--help"], {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "usage:" in done.stdout
