"""The lists of packages agree; training needs no package that only prepares data, and the preparation no torch."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT

PREPARATION_ONLY = ["pycocotools", "skimage", "scipy"]
PREPARES = ["build_batches", "build_vocab", *(f"prepare.{path.stem}" for path in (ROOT / "prepare").glob("[!_]*.py"))]

# Runs in a fresh interpreter: sys.argv[1] names the packages that it lacks, sys.argv[2] the modules to import.
PROBE = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.path.insert(0, ".")
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [stripped for line in lines if (stripped := line.split("#")[0].strip())]


def test_restr_yaml_is_requirements_txt():
    text = (ROOT / "restr.yaml").read_text()
    assert re.findall(r"^ {6}- (\S+)$", text, re.M) == requirements()
    assert re.findall(r"^ {2}- (\S+)$", text, re.M) == ["conda-forge", "python=3.11", "pip", "pip:"]


def test_every_requirement_is_pinned_once():
    assert [line for line in requirements() if not re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+", line)] == []
    names = [line.split("==")[0] for line in requirements()]
    assert len(names) == len(set(names))
    assert {"torch==2.11.0", "torchvision==0.26.0"} <= set(requirements())


def test_python_3_11_and_3_12_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    supported = SpecifierSet(project["project"]["requires-python"])
    assert "3.11.0" in supported and "3.12.0" in supported and "3.10.14" not in supported
    assert project["tool"]["ruff"]["target-version"] == "py311"  # lint refuses newer syntax


@pytest.mark.parametrize(
    ("packages", "modules"),
    [(PREPARATION_ONLY, ["models", "eval.evaluate", "train_restr", "predict"]), (["torch", "timm"], PREPARES)],
)
def test_what_a_room_does_without(packages, modules):
    command = [sys.executable, "-c", PROBE, ",".join(packages), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [".ci/run", "tools/demo.sh"])
def test_shell_scripts_are_executable_and_parse(script):
    assert os.access(ROOT / script, os.X_OK)
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
