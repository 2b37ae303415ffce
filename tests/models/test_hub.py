"""hubconf.py: the model from another project, which has modules of the same names as ours."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from models import load_restr
from tests.conftest import ROOT
from tests.support.small_model import write_checkpoint

LOAD = f"""
import json, sys, numpy, torch
{{before}}
model = torch.hub.load({str(ROOT)!r}, "restr", "best.pth", source="local", device="cpu")
image = numpy.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=numpy.uint8)
model.set_image(image)
masks = [model.segment(image, "w4 w5", 0.51), *model.predict(["w4 w5", "w6"])]
import models.own, utils, eval
assert (models.own.name, utils.name, eval.name) == ("theirs",) * 3 and {str(ROOT)!r} not in sys.path
{{after}}
print(json.dumps([mask.tolist() for mask in masks]))
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a checkpoint beside packages and a module with our names."""
    write_checkpoint(tmp_path / "best.pth")
    (tmp_path / "models").mkdir()
    for file in ("models/__init__.py", "models/own.py", "utils.py", "eval.py"):
        (tmp_path / file).write_text("name = 'theirs'")
    return tmp_path


def run(project, script: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    (project / "script.py").write_text(script)
    command = [sys.executable, "script.py"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


COMPILED = """
ids = torch.ones(1, 20, dtype=torch.long)
whole = torch.zeros(1, 3, *model.image_size)
with torch.no_grad():
    compiled = torch.compile(model, backend="eager")(whole, ids)[0]
    assert torch.equal(compiled, model(whole, ids)[0])
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("import models.own, utils; models.own.mark = utils.mark = 1", "assert models.own.mark == utils.mark == 1"),
        ("import utils", COMPILED),
    ],
    ids=["imported later", "imported before", "compiled"],
)
def test_another_project_keeps_its_modules(project, before, after):
    done = run(project, LOAD.format(before=before, after=after))
    assert done.returncode == 0, done.stderr
    model, image = load_restr(project, "cpu"), np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    expected = [model.segment(image, "w4 w5", 0.51), *model.segment(image, ["w4 w5", "w6"])]
    assert np.array_equal(json.loads(done.stdout), expected)
    assert len({mask.sum() for mask in expected}) == 3


def test_a_failed_load_leaves_the_modules_too(project):
    (project / "best.pth").write_bytes(b"not a checkpoint")
    load = f'torch.hub.load({str(ROOT)!r}, "restr", "best.pth", source="local")'
    caught = f"try: {load}\nexcept ValueError as error: print(error)"
    done = run(project, f"import torch, utils\n{caught}\nimport models.own\nassert utils.name == 'theirs'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("best.pth: ") and done.stdout.count("\n") == 1


def test_dependencies_are_what_the_code_imports():
    """Whatever `models` imports from outside, and does not bring along, is named for torch.hub to check."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import hubconf, models, ast, pathlib
files = [pathlib.Path(m.__file__) for n, m in list(sys.modules.items()) if n.split(".")[0] in ("models", "utils")]
nodes = [node for file in files for node in ast.parse(file.read_text()).body]
names = {{alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}}
names |= {{node.module for node in nodes if isinstance(node, ast.ImportFrom)}}
tops = {{name.split(".")[0] for name in names}} - sys.stdlib_module_names - {{"models", "utils"}}
assert tops == set(hubconf.dependencies), tops
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
