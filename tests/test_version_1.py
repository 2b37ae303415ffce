"""Files that version 1.0 wrote (tests/data/v1/), read by the present code: prepared data, a checkpoint and a run.

Images and masks are compared with what version 1.0 read, logits with what its model gave, and the run, which it left
at step 2 of 4, with the log of its own uninterrupted run.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest

from models import load_restr
from models.config import LANGUAGE_BACKBONES, VISION_BACKBONES, LanguageConfig, VisionConfig
from tests.conftest import DATA
from tests.support import forked
from tests.support.small_model import outputs
from tests.support.train_runs import records
from utils.prepared import PreparedSplit

V1 = DATA / "v1"
FACTS = json.loads((V1 / "facts.json").read_text())
FLAGS = """
    --v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --tr_n_layers 1 --no_pretrained --random_embeddings
    --input_size 48,48 --adamW --lr 1e-3 --v_lr_scale 1 --batch_size 2 --num_steps 4 --save_every 2 --log_every 1
    --num_workers 0 --device cpu --keep 1 --resume
""".split()


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FACTS)
def test_prepared_data(name):
    folder, split_name = name.split("/")
    split = PreparedSplit(V1 / folder, split_name)
    assert len(split) == len(FACTS[name])
    for i, (ids, expression, image_name, image, shape, mask, pixels) in enumerate(FACTS[name]):
        now = split.text(i)
        assert [" ".join(map(str, now[0][now[0] > 0])), *now[1:]] == [ids, expression, image_name]
        assert now[0].shape == (20,) and now[0].dtype == np.int64
        assert (sha256(split.image(i)), list(split.image(i).shape)) == (image, shape)
        assert (sha256(split.mask(i)), int(split.mask(i).sum())) == (mask, pixels)


def test_checkpoint():
    model = load_restr(V1 / "run/last.pth").eval()
    stored = np.load(V1 / "outputs.npz")["logits"]
    np.testing.assert_allclose(outputs(model).numpy(), stored, rtol=1e-5, atol=1e-6)


def resume(arguments: list) -> None:
    """Run train_restr.py with a model as small as the stored one."""
    VISION_BACKBONES["vit_shapes_patch8"] = VisionConfig(
        "vit_tiny_patch16_224", patch_size=8, width=12, depth=1, heads=2, norm_eps=None
    )
    LANGUAGE_BACKBONES["transformer_shapes"] = LanguageConfig(width=12, depth=1, heads=2)
    forked.script("train_restr", arguments)


def test_run_resumes(tmp_path):
    for name in ("run", "Gref_48_batch"):  # to which the index of images is added
        shutil.copytree(V1 / name, tmp_path / name)
    where = ["--data_dir", tmp_path / "Gref_48_batch", "--weights_dir", tmp_path, "--exp_name", "run"]
    process = forked.start(resume, [*where, *FLAGS], output=tmp_path / "run")
    process.join(120)
    assert process.exitcode == 0, forked.errors(tmp_path / "run")
    now, then = records(tmp_path / "run"), [json.loads(line) for line in (V1 / "whole_run.jsonl").open()]
    assert len(now) == len(then)
    for a, b in zip(now, then, strict=True):
        assert a["kind"] == b.pop("kind")
        assert {key: a[key] for key in b} == pytest.approx(b, rel=1e-5)
