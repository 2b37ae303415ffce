"""docs/CUSTOM_DATA.md does what it says, typed from the top in a fresh copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from utils.prepared import PreparedSplit


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the code in which every block of the page was run, in order."""
    folder = tmp_path_factory.mktemp("clone")
    for package in ("models", "utils", "eval", "prepare", "train"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for script in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(script, folder)
    page = (ROOT / "docs/CUSTOM_DATA.md").read_text()
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        commands = [["python", "-c", block]] if language == "python" else map(shlex.split, block.splitlines())
        for command in commands if language != "text" else ():
            assert command[0] == "python"
            run = [sys.executable, *command[1:]]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    return folder


def test_batches_are_the_squares_of_the_script(copy):
    data = PreparedSplit(copy / "data/custom/ten_64_batch", "val")
    assert len(data) == 8 and data.text(7)[1] == "red square on the right"
    for i in range(8):
        image, mask = data.sample(i)
        left = 8 if i % 4 < 2 else 56
        expected = np.zeros((72, 96), bool)
        expected[20:52, left : left + 32] = True
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(image.any(axis=2) & (np.arange(96) // 48 == (left > 48)), expected)
    ids = [data.text(i)[0] for i in range(8)]
    assert all((row != 3).all() for row in ids)  # words of the validation split that training has too
    train = PreparedSplit(copy / "data/custom/ten_64_batch", "train")
    assert len(train) == 32 and train.image(0).shape == (64, 64, 3)


def test_the_other_layout_gives_the_same(copy):
    lines, coco = (PreparedSplit(copy / f"data/custom/{name}_64_batch", "train") for name in ("ten", "ten_coco"))
    assert len(coco) == 16
    for i in range(16):
        j = i // 2 * 4 + i % 2  # every other line has a polygon
        assert lines.text(j)[1:] == coco.text(i)[1:] and (lines.text(j)[0] == coco.text(i)[0]).all()
        for one, other in zip(lines.sample(j), coco.sample(i), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_training_evaluation_and_prediction_leave(copy):
    metrics = json.loads(next(copy.glob("weights/restr_ten/eval_ten_val_*/metrics.json")).read_text())
    assert (metrics["dataset"], metrics["split"], metrics["n_samples"]) == ("ten", "val", 8)
    with Image.open(copy / "predictions/9-the_red_square_mask.png") as mask:
        assert mask.size == (96, 72)
