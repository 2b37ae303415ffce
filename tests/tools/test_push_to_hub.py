"""Models of the Hugging Face hub: written, uploaded to a hub on this machine, fetched from it, and refused."""

import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import fields
from hashlib import sha256

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from eval import evaluate
from eval.metrics import SampleScore
from models import load_restr
from models.checkpoint import Checkpoint, file_sha256, read_checkpoint
from tests.conftest import ROOT
from tests.support.hostile import refused
from tests.support.hub_server import Hub, serving
from tests.support.report_case import write_result
from tests.support.small_model import WORDS, outputs, write_checkpoint
from tools import push_to_hub
from utils.hub import write_files

METRICS = {"val": {"oIoU": 61.25, "prec": {"0.5": 70.0}}}
LOAD = """
import hashlib, json, sys
from models import load_restr
from utils.errors import InputError
for address in sys.argv[1:]:
    try:
        model = load_restr(address, "cpu")
        weights = [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in model.state_dict().values()]
        print(json.dumps([weights, model.vocabulary, model.provenance["step"]]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def run(hub: Hub, home, *command: object, token: str = "secret") -> subprocess.CompletedProcess:
    """A command of which the client asks `hub`; huggingface_hub reads both variables when it is imported."""
    where = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **where, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)


@pytest.fixture
def checkpoint(tmp_path):
    """best.pth with a result of its own and one of another step beside it."""
    path = tmp_path / "run/best.pth"
    write_checkpoint(path, metrics=METRICS)
    scores = [SampleScore(0, "unc_val_0", 3, 4, 1, "red", "i"), SampleScore(1, "unc_val_1", 1, 4, 2, "a b", "i")]
    own, other = (write_result(path.parent / f"eval_unc_{name}", scores) for name in ("val_500", "testA_100"))
    result = json.loads(own.read_text())
    result["checkpoint"]["sha256"] = file_sha256(path)
    own.write_text(json.dumps(result))
    return path


@pytest.mark.slow
def test_a_model_goes_to_the_hub_and_comes_back(tmp_path, checkpoint):
    """Nothing leaves without --yes; with it the files of the folder arrive, and the weights come back bit for bit."""
    push = [ROOT / "tools/push_to_hub.py", "--checkpoint", checkpoint, "--repo", "me/shapes", "--out", tmp_path / "out"]
    with serving(Hub({"me/old": {"main": {}, "v1": {"best.pth": checkpoint.read_bytes()}}})) as hub:
        done = run(hub, tmp_path / "home", *push)
        assert done.returncode == 0 and "not uploaded" in done.stdout and "--yes" in done.stdout, done.stderr
        assert hub.asked == [] and "me/shapes" not in hub.models
        done = run(hub, tmp_path / "home", *push, "--yes", token="wrong")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "me/shapes: not uploaded" in done.stderr
        assert "me/shapes" not in hub.models
        done = run(hub, tmp_path / "home", *push, "--yes")
        assert done.returncode == 0 and f"uploaded: {hub.endpoint}/me/shapes" in done.stdout, done.stderr
        written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert hub.models["me/shapes"]["main"] == written and len(written) == 4
        names = "hf://me/shapes", "hf:/me/shapes@main", "hf://me/old@v1/best.pth"
        absent = "hf://me/none", "hf://me/old", "hf://me/shapes@v2", "hf://me/shapes/last.pth", "hf://me"
        done = run(hub, tmp_path / "home", "-c", LOAD, *names, *absent)
    model = load_restr(checkpoint, "cpu")
    digests = [sha256(value.numpy().tobytes()).hexdigest() for value in model.state_dict().values()]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[:3] == [[digests, WORDS, 500]] * 3 and done.stderr == ""
    faults = ["no such model", "no file model.safetensors", "no revision v2", "no file last.pth", "is no name of"]
    for name, fault, message in zip(absent, faults, found[3:], strict=True):
        assert message.startswith(f"{name}: ") and fault in message and message.isprintable()
    # The hub is gone: what was fetched is still there, and what was not is one line.
    found = run(hub, tmp_path / "home", "-c", LOAD, names[0], names[2]).stdout.splitlines()
    assert [json.loads(line) for line in found] == [[digests, WORDS, 500]] * 2
    where = ["--image", ROOT / "docs/demo.jpg", "--text", "red"]
    done = run(hub, tmp_path / "empty", ROOT / "predict.py", "--checkpoint", "hf://me/shapes", *where)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "hf://me/shapes: could not be fetched" in done.stderr and "is there a network?" in done.stderr


def push(checkpoint, *flags: object) -> None:
    push_to_hub.main([*map(str, ["--checkpoint", checkpoint, "--repo", "me/shapes", *flags])])


def test_only_yes_uploads(tmp_path, checkpoint, monkeypatch):
    calls = []
    monkeypatch.setattr(push_to_hub, "upload", lambda *call: calls.append(call))
    push(checkpoint, "--out", tmp_path / "out", "--private")
    assert calls == []
    push(checkpoint, "--out", tmp_path / "out", "--private", "--yes")
    assert calls == [("me/shapes", tmp_path / "out", True)]


def test_every_field_of_a_checkpoint_travels(tmp_path, checkpoint):
    push(checkpoint, "--out", tmp_path / "out")
    whole, read = read_checkpoint(checkpoint), read_checkpoint(tmp_path / "out/model.safetensors")
    assert whole.metrics == METRICS and whole.data["dataset"] == "unc"
    for field in fields(Checkpoint):
        if field.name != "weights":
            assert getattr(read, field.name) == getattr(whole, field.name), field.name
    assert read.weights.keys() == whole.weights.keys()
    assert all(torch.equal(value, read.weights[name]) for name, value in whole.weights.items())
    image = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    of_file, of_folder = (
        load_restr(path, "cpu").segment(image, "w4 w5", 0.51) for path in (checkpoint, tmp_path / "out")
    )
    assert np.array_equal(of_file, of_folder) and 0 < of_file.sum() < of_file.size


def test_of_a_state_to_resume_the_model_is_written(tmp_path):
    write_checkpoint(tmp_path / "last.pth", training={"trainer": {"rng": torch.zeros(3)}})
    push(tmp_path / "last.pth", "--out", tmp_path / "out")
    assert torch.equal(*(outputs(load_restr(tmp_path / name, "cpu")) for name in ("last.pth", "out")))


def test_tensors_that_share_memory_and_other_types_are_written(tmp_path):
    row = torch.arange(6, dtype=torch.float16).view(2, 3)
    model = {"a": row, "b": row, "c": row.T, "d": torch.tensor(float("nan"))}
    write_files(tmp_path, {"model": model, "vocabulary": None, "step": 1})
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], model[name]) and read[name].dtype == row.dtype for name in "abc")
    assert read["d"].isnan() and not (tmp_path / "vocabulary.txt").exists()


def test_the_card_has_the_results_of_this_checkpoint(tmp_path, checkpoint, capsys):
    """As the hub reads them: sums of I over sums of U, and means, of the two samples in the fixture."""
    push(checkpoint, "--out", tmp_path / "out", "--license", "cc-by-4.0")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("cc-by-4.0", "image-segmentation")
    found = [(row.dataset_split, row.metric_type, row.metric_value) for row in card.data.eval_results]
    assert found == [("val", "oIoU", 50.0), ("val", "mIoU", 50.0)]
    assert {row.dataset_name for row in card.data.eval_results} == {'data named "unc"'}  # of 2 samples: not RefCOCO's
    assert 'load_restr("hf://me/shapes")' in card.text and file_sha256(checkpoint) in card.text
    assert re.search(r"unc. val +2 +50\.00 +50\.00 ", card.text)
    listed = dict(re.findall(r"^(\S+)  ([\d,]+) bytes$", capsys.readouterr().out, re.M))
    sizes = {str(path): f"{path.stat().st_size:,}" for path in (tmp_path / "out").iterdir()}
    assert listed == sizes and len(sizes) == 4
    other = checkpoint.parent / "eval_unc_testA_100/metrics.json"
    message = refused(push, checkpoint, "--out", tmp_path / "out", "--metrics", other)
    assert f"{other}: is of another checkpoint than {checkpoint}" in message
    for path in checkpoint.parent.glob("eval_*/metrics.json"):
        path.unlink()
    push(checkpoint, "--out", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.eval_results is None and "it was not evaluated" in card.text


def test_what_cannot_be_pushed_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for repo in ("shapes", "me/", "/shapes", "a/b/c", "me/..", "me/a b"):
        assert "write owner/name" in refused(push, checkpoint, "--repo", repo)
    broken = tmp_path / "broken.pth"
    values = torch.load(checkpoint, weights_only=True)
    torch.save({**values, "vocabulary": None}, broken)
    assert "has no vocabulary" in refused(push, broken)
    torch.save({**values, "model": {**values["model"], "more": torch.zeros(1)}}, broken)
    assert "do not fit" in refused(push, broken)
    assert not (tmp_path / "hub").exists()
    for change in (
        {"metrics": {"val": float("nan")}},
        {"data": {"x": torch.zeros(1)}},
        {"vocabulary": [*WORDS[:-1], " x"]},
    ):
        torch.save({**values, **change}, broken)
        assert "hub/shapes/" in refused(push, broken)
        assert not (tmp_path / "hub/shapes/model.safetensors").exists()


@pytest.mark.parametrize("content", ['{"flags": {}}', '{"model_type": "bert"}', "[]", "x"])
def test_a_folder_of_something_else_stays_as_it_is(tmp_path, checkpoint, content):
    """A run's folder and an encoder's have a config.json, too."""
    (checkpoint.parent / "config.json").write_text(content)
    before = {path: path.read_bytes() for path in checkpoint.parent.rglob("*.*") if path.is_file()}
    assert "config.json" in refused(push, checkpoint, "--out", checkpoint.parent)
    assert before == {path: path.read_bytes() for path in checkpoint.parent.rglob("*.*") if path.is_file()}
    for _ in range(2):  # its own is written again
        push(checkpoint, "--out", tmp_path / "out")


def test_results_of_a_model_of_the_hub_need_a_folder(capsys):
    with pytest.raises(SystemExit) as left:
        evaluate.main(["--data_dir", "x", "--checkpoint", "hf://me/shapes"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1 and "give --output_dir" in said


def config(**changes):
    """Change values of config.json."""

    def change(folder):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return change


def wide(folder):
    values = json.loads((folder / "config.json").read_text())
    values["config"]["vision"]["width"] = 16_000
    (folder / "config.json").write_text(json.dumps(values))


def weights(**changes):
    """Change tensors of model.safetensors."""

    def change(folder):
        save_file({**load_file(folder / "model.safetensors"), **changes}, folder / "model.safetensors")

    return change


def head(length: int, header: bytes):
    """model.safetensors with another length and text of its header."""
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(64))


CLAIM = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (config(format="bert"), "neither a checkpoint of this code"),
        (config(version=2), "another version"),
        (config(config={"vision": {}}), "not a ReSTR configuration"),
        (config(step="9"), "'step' is missing or of a wrong kind"),
        (wide, "do not fit its configuration"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not the configuration of a model"),
        (lambda folder: (folder / "config.json").write_text("[" * 10**6), "config.json: is not a readable"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "vocabulary.txt").unlink(), "vocabulary.txt: no such file"),
        (lambda folder: (folder / "vocabulary.txt").write_text("<pad>\n<go>\n<eos>\n<unk>\n"), "its vocabulary is not"),
        (
            weights(**{"fusion.proj_v.weight": torch.zeros(24, 25)}),
            "do not fit its configuration: fusion.proj_v.weight",
        ),
        (weights(**{"fusion.proj_v.weight": torch.zeros(24, 24, dtype=torch.int8)}), "torch.int8"),
        (weights(more=torch.zeros(1)), "more is left over"),
        (head(2**60, b"{}"), "model.safetensors: is not a readable safetensors file"),
        (head(len(CLAIM), CLAIM), "model.safetensors: is not a readable safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors: is an empty file"),
    ],
    ids=range(16),
)
def test_damaged_and_hostile_files_are_refused(tmp_path, checkpoint, change, fault):
    push(checkpoint, "--out", tmp_path / "out")
    change(tmp_path / "out")
    message = refused(load_restr, tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'out'}/") and fault in message
