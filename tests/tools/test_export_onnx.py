"""tools/export_onnx.py: the file in onnxruntime against the plain float64 form and against PyTorch."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.plain_restr import PlainReSTR
from models import load_restr, to_reference
from models.checkpoint import Checkpoint, save_checkpoint
from models.config import DecoderConfig, FusionConfig
from tests.conftest import ROOT
from tests.support.small_model import REFERENCE, SIZE, VOCABULARY, WORDS, tiny_model
from tools import export_onnx
from utils.errors import InputError


def checkpoint(path: Path, words: list[str] | None = WORDS, **parts) -> Path:
    model = tiny_model(**parts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # small random weights would hide differences
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, words, {"dataset": "unc"}, step=7))
    return path


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(batch)
    image = rng.integers(0, 256, (batch, 3, *SIZE), dtype=np.uint8)
    ids = rng.integers(1, len(WORDS), (batch, 20))
    for row in range(batch):
        ids[row, : 4 * row] = 0
    return image, ids


def run(path: Path, image: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["pixel_logits", "patch_logits"], {"image": image, "ids": ids})


def assert_same(ours, theirs) -> None:
    assert ours.shape == tuple(theirs.shape)
    assert np.abs(theirs.numpy()).max() > 0.01
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4 * np.abs(theirs.numpy()).max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path, str]:
    """Checkpoint, ONNX file in a folder that was not there, and what was printed; run from elsewhere."""
    folder = tmp_path_factory.mktemp("export")
    source, out = checkpoint(folder / "best.pth"), folder / "new/model.onnx"
    command = [sys.executable, ROOT / "tools/export_onnx.py", "--checkpoint", source, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return source, out, done.stdout


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_equal_the_plain_float64_form(exported, batch):
    source, out, _ = exported
    state = {name: value.double() for name, value in to_reference(load_restr(source, "cpu")).items()}
    image, ids = inputs(batch)
    normalised = (torch.from_numpy(image).double() / 255 - 0.5) / 0.5
    expected = PlainReSTR(state, REFERENCE)(normalised, torch.from_numpy(ids))
    for ours, theirs in zip(run(out, image, ids), expected, strict=True):
        assert_same(ours, theirs)


def test_the_script_prints_the_deviation(exported):
    lines = exported[2].splitlines()
    assert "PyTorch in batches of 1, 2, 3" in lines[1]
    for line, name in zip(lines[2:4], ("pixel_logits", "patch_logits"), strict=True):
        found = re.fullmatch(rf"  {name}: (\S+), of logits up to (\S+)", line)
        assert 0 < float(found[1]) < 1e-4 * float(found[2])
    assert lines[4].endswith("image uint8 B x 3 x 32 x 48, ids int64 B x 20")


def test_the_file_describes_itself(exported):
    source, out, _ = exported
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    tensors = {tensor.name: (tensor.type, tensor.shape) for tensor in [*session.get_inputs(), *session.get_outputs()]}
    assert tensors == {
        "image": ("tensor(uint8)", ["batch", 3, *SIZE]),
        "ids": ("tensor(int64)", ["batch", 20]),
        "pixel_logits": ("tensor(float)", ["batch", 1, *SIZE]),
        "patch_logits": ("tensor(float)", ["batch", 1, 4, 6]),
    }
    about = session.get_modelmeta().custom_metadata_map
    assert about["vocabulary"].split("\n") == WORDS
    assert about["vocabulary_sha256"] == VOCABULARY.sha256
    assert (about["image_size"], about["patch_size"], about["text_length"]) == ("32,48", "8", "20")
    assert (about["mean"], about["std"]) == ("0.5,0.5,0.5", "0.5,0.5,0.5")
    assert (about["dataset"], about["step"]) == ("unc", "7")
    assert about["checkpoint_sha256"] == load_restr(source).provenance["sha256"]
    assert [entry.name for entry in out.parent.iterdir()] == ["model.onnx"]  # no data beside it, no temporary


OTHERS = {
    "vanilla": {"fusion": FusionConfig("vanilla")},
    "independent": {"fusion": FusionConfig("independent")},
    "shared, no decoder": {"fusion": FusionConfig(shared=True), "decoder": DecoderConfig(False)},
}


@pytest.mark.parametrize("parts", OTHERS.values(), ids=OTHERS)
def test_other_models_in_the_newest_opset(tmp_path, parts):
    source, out = checkpoint(tmp_path / "a.pth", words=None, **parts), tmp_path / "a.onnx"
    export_onnx.main(["--checkpoint", str(source), "--out", str(out), "--opset", "20"])
    image, ids = inputs(4)
    with torch.no_grad():
        expected = load_restr(source, "cpu")(torch.from_numpy(image), torch.from_numpy(ids))
    for ours, theirs in zip(run(out, image, ids), expected, strict=True):
        assert_same(ours, theirs)
    file = onnx.load(out)
    assert [entry.version for entry in file.opset_import if entry.domain in ("", "ai.onnx")] == [20]
    assert "vocabulary" not in {entry.key for entry in file.metadata_props}


def export_then(change: str, *value, original=export_onnx.export):
    """An export, after which PyTorch's class seed is another one."""

    def export(model, opset):
        data = original(model, opset)
        with torch.no_grad():
            getattr(model.fusion.class_seed, change)(*value)
        return data

    return export


def export_one_batch_size(model, opset, export=export_onnx.export, fixed=torch.onnx.export):
    """As of a model whose trace holds the number of images as a constant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *model, dynamic_axes, **how: fixed(*model, **how))
        return export(model, opset)


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        (("export", export_then("neg_")), r"a\.pth: pixel_logits of the ONNX model differ .*: not written"),
        (("export", export_then("fill_", torch.nan)), "differ .* by nan"),
        (("export", export_one_batch_size), "onnxruntime cannot run the ONNX model"),
        (("MAX_BYTES", 1000), "an ONNX file holds less than 2 GiB"),
    ],
)
def test_what_does_not_compute_the_same_is_refused_and_the_old_file_stays(tmp_path, monkeypatch, replaced, says):
    source, out = checkpoint(tmp_path / "a.pth"), tmp_path / "a.onnx"
    out.write_bytes(b"old")
    monkeypatch.setattr(export_onnx, *replaced)
    with pytest.raises(InputError, match=says):
        export_onnx.main(["--checkpoint", str(source), "--out", str(out)])
    assert out.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "a.pth"]
