"""The lists of packages agree, and what trains or evaluates needs none of the packages that only prepare data."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PREPARATION_ONLY = ("pycocotools", "skimage", "scipy")
TRAINS_OR_EVALUATES = (
    "models",
    "utils.prepared",
    "utils.text",
    "eval.evaluator",
    "eval.metrics",
    "eval.evaluate",
    "train_restr",
)

# Runs in a fresh interpreter: sys.argv[1] names the packages that must not be found, sys.argv[2] the modules to import.
PROBE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} was asked for", name=name)

blocked = sys.argv[1].split(",")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, ".")
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [stripped for line in lines if (stripped := line.split("#")[0].strip())]


def conda_lists(text: str) -> tuple[list[str], list[str]]:
    """The conda packages and the pip packages of an environment file, by the dashes' indentation."""
    conda, pip, below_pip = [], [], False
    lines = [line.split("#")[0].rstrip() for line in text.splitlines()]
    for line in lines[lines.index("dependencies:") + 1 :]:
        if not line:
            continue
        indent, item = re.fullmatch(r"( +)- (\S+)", line).groups()
        if len(indent) == 2:
            below_pip = item == "pip:"
            conda += [] if below_pip else [item]
        else:
            assert below_pip, f"restr.yaml: {line!r} stands under no list"
            pip.append(item)
    return conda, pip


def import_without(blocked: tuple[str, ...], modules: tuple[str, ...]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROBE, ",".join(blocked), ",".join(modules)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_restr_yaml_is_requirements_txt():
    conda, pip = conda_lists((ROOT / "restr.yaml").read_text())
    assert pip == requirements()
    assert conda == ["python=3.11", "pip"]


def test_every_requirement_is_pinned_once():
    names = []
    for line in requirements():
        match = re.fullmatch(r"([a-z0-9-]+)==\d+(\.\d+)+", line)
        assert match, f"requirements.txt: {line!r} is not NAME==VERSION"
        names.append(match[1])
    assert len(names) == len(set(names))
    assert {"torch==2.11.0", "torchvision==0.26.0"} <= set(requirements())


def test_python_3_11_and_3_12_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    supported = SpecifierSet(project["project"]["requires-python"])
    assert "3.11.0" in supported and "3.12.0" in supported and "3.10.14" not in supported
    assert project["tool"]["ruff"]["target-version"] == "py311"  # lint refuses newer syntax


def test_training_and_evaluation_do_without_the_preparation_packages():
    done = import_without(PREPARATION_ONLY, TRAINS_OR_EVALUATES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PREPARATION_ONLY)
def test_the_probe_refuses_a_package(package):
    done = import_without(PREPARATION_ONLY, (package,))
    assert done.returncode != 0
    assert f"ModuleNotFoundError: {package} was asked for" in done.stderr


@pytest.mark.parametrize("folder", ["models", "eval"])
def test_no_lazy_import_of_the_preparation_packages(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(PREPARATION_ONLY), f"{path}: {names}"


@pytest.mark.parametrize("script", [".ci/run", "tools/demo.sh"])
def test_shell_scripts_are_executable_and_parse(script):
    assert os.access(ROOT / script, os.X_OK)
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
