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
from models import ReSTRConfig, build_restr, load_restr, to_reference
from models.checkpoint import Checkpoint, save_checkpoint
from models.config import DecoderConfig, FusionConfig, LanguageConfig, VisionConfig
from tests.conftest import ROOT
from tools import export_onnx
from utils.errors import InputError
from utils.text import SPECIAL_WORDS, Vocabulary

SCRIPT = ROOT / "tools/export_onnx.py"
WORDS = [*SPECIAL_WORDS, "red", "blue", "größte", "left of", *(f"word{i}" for i in range(22))]
VISION = VisionConfig(image_size=(64, 96), patch_size=16, width=24, depth=2, heads=3, norm_eps=1e-5)
LANGUAGE = LanguageConfig(len(WORDS), width=12, depth=2, heads=3)
PLAIN = {  # the same model in the reference's words
    "v_backbone": {"image_size": [64, 96], "patch_size": 16, "d_model": 24, "n_heads": 3, "n_layers": 2},
    "l_backbone": {"d_lang": 12, "n_layers": 2, "n_heads": 3},
    "mm_fusion": {"n_layers": 2, "n_heads": 3, "is_shared": False, "is_decoder": True},
}


def checkpoint(path: Path, words: list[str] | None = WORDS, **parts) -> Path:
    torch.manual_seed(3)
    model = build_restr(ReSTRConfig(VISION, LANGUAGE, **parts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # small random weights would hide differences
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, words, {"dataset": "unc"}, step=7))
    return path


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(batch)
    image = rng.integers(0, 256, (batch, 3, 64, 96), dtype=np.uint8)
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
    command = [sys.executable, str(SCRIPT), "--checkpoint", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return source, out, done.stdout


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_equal_the_plain_float64_form(exported, batch):
    source, out, _ = exported
    state = {name: value.double() for name, value in to_reference(load_restr(source)).items()}
    image, ids = inputs(batch)
    normalised = (torch.from_numpy(image).double() / 255 - 0.5) / 0.5
    expected = PlainReSTR(state, PLAIN)(normalised, torch.from_numpy(ids))
    for ours, theirs in zip(run(out, image, ids), expected, strict=True):
        assert_same(ours, theirs)


def test_the_script_prints_the_deviation(exported):
    lines = exported[2].splitlines()
    assert "PyTorch in batches of 1, 2, 3" in lines[1]
    for line, name in zip(lines[2:4], ("pixel_logits", "patch_logits"), strict=True):
        found = re.fullmatch(rf"  {name}: (\S+), of logits up to (\S+)", line)
        assert 0 < float(found[1]) < 1e-4 * float(found[2])
    assert lines[4].endswith("image uint8 B x 3 x 64 x 96, ids int64 B x 20")


def test_the_file_describes_itself(exported):
    source, out, _ = exported
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    tensors = {tensor.name: (tensor.type, tensor.shape) for tensor in [*session.get_inputs(), *session.get_outputs()]}
    assert tensors == {
        "image": ("tensor(uint8)", ["batch", 3, 64, 96]),
        "ids": ("tensor(int64)", ["batch", 20]),
        "pixel_logits": ("tensor(float)", ["batch", 1, 64, 96]),
        "patch_logits": ("tensor(float)", ["batch", 1, 4, 6]),
    }
    about = session.get_modelmeta().custom_metadata_map
    assert about["vocabulary"].split("\n") == WORDS
    assert about["vocabulary_sha256"] == Vocabulary(WORDS).sha256
    assert (about["image_size"], about["patch_size"], about["text_length"]) == ("64,96", "16", "20")
    assert (about["mean"], about["std"]) == ("0.5,0.5,0.5", "0.5,0.5,0.5")
    assert (about["dataset"], about["step"]) == ("unc", "7")
    assert about["checkpoint_sha256"] == load_restr(source).provenance["sha256"]
    assert [entry.name for entry in out.parent.iterdir()] == ["model.onnx"]  # no data beside it, no temporary


@pytest.mark.parametrize(
    "parts",
    [
        {"fusion": FusionConfig("vanilla")},
        {"fusion": FusionConfig("independent")},
        {"fusion": FusionConfig(shared=True), "decoder": DecoderConfig(False)},
    ],
    ids=["vanilla", "independent", "shared without decoder"],
)
def test_other_models_in_the_newest_opset(tmp_path, parts):
    source, out = checkpoint(tmp_path / "a.pth", words=None, **parts), tmp_path / "a.onnx"
    export_onnx.main(["--checkpoint", str(source), "--out", str(out), "--opset", "20"])
    image, ids = inputs(4)
    with torch.no_grad():
        expected = load_restr(source)(torch.from_numpy(image), torch.from_numpy(ids))
    for ours, theirs in zip(run(out, image, ids), expected, strict=True):
        assert_same(ours, theirs)
    file = onnx.load(out)
    assert [entry.version for entry in file.opset_import if entry.domain in ("", "ai.onnx")] == [20]
    assert "vocabulary" not in {entry.key for entry in file.metadata_props}


def test_a_file_that_deviates_is_refused_and_the_old_one_stays(tmp_path, monkeypatch):
    source, out = checkpoint(tmp_path / "a.pth"), tmp_path / "a.onnx"
    out.write_bytes(b"old")
    export = export_onnx.export

    def export_and_move_on(model, opset):
        data = export(model, opset)
        with torch.no_grad():
            model.fusion.class_seed.neg_()
        return data

    monkeypatch.setattr(export_onnx, "export", export_and_move_on)
    with pytest.raises(InputError, match=r"a\.pth: pixel_logits of the ONNX model differ .*: not written"):
        export_onnx.main(["--checkpoint", str(source), "--out", str(out)])
    assert out.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "a.pth"]


def test_a_file_that_does_not_run_is_refused(tmp_path, monkeypatch):
    """As with a model whose trace holds the number of images as a constant."""
    source, out = checkpoint(tmp_path / "a.pth"), tmp_path / "a.onnx"
    fixed = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *model, dynamic_axes, **how: fixed(*model, **how))
    with pytest.raises(InputError, match="onnxruntime cannot run the ONNX model"):
        export_onnx.main(["--checkpoint", str(source), "--out", str(out)])
    assert not out.exists()


def test_a_deviation_that_is_not_a_number_is_refused():
    with pytest.raises(InputError, match="nan"):
        export_onnx.report({"pixel_logits": (float("nan"), 3.0)}, Path("a.pth"))


def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch):
    model = load_restr(checkpoint(tmp_path / "a.pth"))
    monkeypatch.setattr(export_onnx, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="an ONNX file holds less than 2 GiB"):
        export_onnx.check_size(model, tmp_path / "a.pth")
    with pytest.raises(InputError, match="none.pth: no such checkpoint"):
        export_onnx.main(["--checkpoint", "none.pth", "--out", str(tmp_path / "b.onnx")])
    assert not (tmp_path / "b.onnx").exists()
