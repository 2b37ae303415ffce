"""The lists of packages agree; training needs no package that only prepares data, and the preparation no torch."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PREPARATION_ONLY = ["pycocotools", "skimage", "scipy"]
PREPARES = ["build_batches", "build_vocab", *(f"prepare.{path.stem}" for path in (ROOT / "prepare").glob("[!_]*.py"))]
REQUIREMENTS = re.findall(r"^[^\s#]+", (ROOT / "requirements.txt").read_text(), re.M)
PROBE = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""


def test_restr_yaml_is_requirements_txt():
    text = (ROOT / "restr.yaml").read_text()
    assert re.findall(r"^ {6}- (\S+)$", text, re.M) == REQUIREMENTS
    assert re.findall(r"^ {2}- (\S+)$", text, re.M) == ["conda-forge", "python=3.11", "pip", "pip:"]


def test_every_requirement_is_pinned_once():
    assert [line for line in REQUIREMENTS if not re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+", line)] == []
    assert len({line.split("==")[0] for line in REQUIREMENTS}) == len(REQUIREMENTS) > 10


@pytest.mark.parametrize(
    ("packages", "modules"),
    [
        (PREPARATION_ONLY, ["models", "eval.evaluate", "train_restr", "predict"]),
        (["torch", "timm"], PREPARES),
        ([*PREPARATION_ONLY, "torch"], ["tools.make_shapes"]),
    ],
)
def test_what_a_room_does_without(packages, modules):
    command = [sys.executable, "-c", PROBE, ",".join(packages), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [".ci/run", "tools/demo.sh"])
def test_shell_scripts_are_executable_and_parse(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_the_table_of_promises_names_files():
    names = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "tests/README.md").read_text())
    assert len(names) > 20 and [name for name in names if not (ROOT / "tests" / name).exists()] == []
