"""examples/predict.ipynb runs from top to bottom on the paths of `make demo`; docs/MODELS.md has the demo's numbers."""

import json
import re
import sys

import numpy as np
from PIL import Image

from models import load_restr
from tests.conftest import ROOT
from tests.support.small_model import write_checkpoint

NOTEBOOK = ROOT / "examples/predict.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_the_notebook_runs_where_the_demo_has_been_made(tmp_path, monkeypatch, capsys):
    """With a toy model and noise in the places of the demo's. Its masks are those of one expression at a time."""
    code = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    picture = tmp_path / "examples" / re.search(r'^IMAGE = "(.+?)"', code[0], re.M)[1]
    for folder in (tmp_path / "examples", picture.parent):
        folder.mkdir(parents=True)
    write_checkpoint(tmp_path / "demo/weights/demo/best.pth")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(picture)
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which it adds the folder above
    values = {}
    for number, source in enumerate(code):
        exec(compile(source, f"cell {number}", "exec"), values)
    model, image = load_restr(tmp_path / "demo/weights/demo", "cpu"), values["image"]
    assert image.size == (256, 192) and len(values["EXPRESSIONS"]) == len(values["masks"]) > 2
    for expression, mask in zip(values["EXPRESSIONS"], values["masks"], strict=True):
        assert np.array_equal(mask, model.segment(image, expression))
    assert np.array_equal(values["soft"] >= 0.5, values["result"].mask)
    areas = list(values["areas"].values())
    assert areas == sorted(areas, reverse=True)
    assert values["found"].size[0] > 3 * 256 and values["maps"].size[0] > 3 * 256
    assert '"ultramarine"' in capsys.readouterr().out


def test_what_is_stored_of_the_notebook_is_small_and_whole():
    """It has the results of one run from top to bottom, without errors and without the folders of a machine."""
    runs = [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"]
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    assert runs == list(range(1, len(runs) + 1)) and NOTEBOOK.stat().st_size < 300_000
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 3
    assert not re.search(r"/(work|root|home|Users|tmp)/", NOTEBOOK.read_text())


def test_the_table_of_models_has_the_demo_s_numbers():
    readme, models = ((ROOT / name).read_text() for name in ("README.md", "docs/MODELS.md"))
    rows = re.findall(r"^\| (?:`unc` )?(val|testA|testB) \| ([\d.]+) \|", readme, re.M)
    assert len(rows) == 3 and ", ".join(f"{split} {number}" for split, number in rows) in models
