"""docs/CUSTOM_DATA.md does what it says, typed from the top in a fresh copy of the repository."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from models import ReSTRConfig, build_restr
from models.checkpoint import Checkpoint, save_checkpoint
from models.config import LANGUAGE_BACKBONES
from models.vision import vision_config
from tests.conftest import ROOT
from utils.prepared import PreparedSplit
from utils.text import SPECIAL_WORDS


def write_shapes_model(file):
    """What `make demo` leaves, without its training."""
    words = [*SPECIAL_WORDS, "the", "red", "square", "left", "right"]
    vision, language = vision_config("vit_shapes_patch8", (64, 64)), LANGUAGE_BACKBONES["transformer_shapes"]
    config = ReSTRConfig(vision, replace(language, vocabulary_size=len(words)))
    file.parent.mkdir(parents=True)
    save_checkpoint(file, Checkpoint(build_restr(config).state_dict(), config, words, step=750))


def test_every_block_of_the_page_does_what_it_says(tmp_path):
    """In a copy of the code, in order."""
    for package in ("models", "utils", "eval", "prepare", "train"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for script in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(script, tmp_path)
    write_shapes_model(tmp_path / "demo/weights/demo/best.pth")
    page = (ROOT / "docs/CUSTOM_DATA.md").read_text()
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        commands = [["python", "-c", block]] if language == "python" else map(shlex.split, block.splitlines())
        for command in commands if language != "text" else ():
            assert command[0] == "python"
            run = [sys.executable, *command[1:]]
            done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    names = ("ten", "train"), ("ten_coco", "train"), ("ten", "val")
    lines, coco, val = (PreparedSplit(tmp_path / f"data/custom/{name}_64_batch", split) for name, split in names)
    assert (len(lines), len(coco), len(val)) == (32, 16, 8) and val.text(7)[1] == "red square on the right"
    assert all((val.text(i)[0] != 3).all() for i in range(8))  # words of the validation split that training has too
    for i in range(16):
        j = i // 2 * 4 + i % 2  # every other line has a polygon
        assert lines.text(j)[1:] == coco.text(i)[1:] and (lines.text(j)[0] == coco.text(i)[0]).all()
        assert all(map(np.array_equal, lines.sample(j), coco.sample(i)))
    for i in range(8):
        image, mask = val.sample(i)
        assert mask.sum() == 32 * 32 and mask[20, 8 if i % 4 < 2 else 56] and image[mask].any(axis=1).all()
    begun = torch.load(tmp_path / "weights/restr_ten_new/best.pth", weights_only=True)
    assert set(begun["vocabulary"]) > {"find", "this", "tile", "near", "its", "red", "left"}
    metrics = json.loads(next(tmp_path.glob("weights/restr_ten/eval_ten_val_*/metrics.json")).read_text())
    assert (metrics["dataset"], metrics["split"], metrics["n_samples"]) == ("ten", "val", 8)
    with Image.open(tmp_path / "predictions/9-the_red_square_mask.png") as mask:
        assert mask.size == (96, 72)
