"""Checkpoints: written and read, damaged, foreign, hostile; ours and the reference's."""

import copy
import hashlib
import io
import pickle

import pytest
import torch

from benchmarks.curve_batches import batch
from models import checkpoint as checkpoint_module
from models import load_restr, to_reference, weights
from models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from models.config import ReSTRConfig
from models.restr import build_restr
from tests.conftest import ROOT
from tests.support.hostile import attacks, refused, write
from tests.support.small_model import CONFIG, REFERENCE, WORDS, outputs

DATA = {"dataset": "unc", "image_size": [32, 48], "vocabulary_sha256": "ab"}
METRICS = {"val": {"oIoU": 0.5, "prec": {"0.5": 0.25}}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_restr(CONFIG).eval()


@pytest.fixture
def values(tmp_path, model):
    """What a whole file holds, as `torch.load` gives it."""
    return torch.load(save(tmp_path / "whole.pth", model), weights_only=True)


def save(path, model, **changes):
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, WORDS, DATA, 500, METRICS, **changes))
    return path


def store(path, values):
    torch.save(values, path)
    return path


def test_what_is_saved_is_read(tmp_path, model):
    training = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "best": 0.5, "random": [1, 2]}
    path = save(tmp_path / "last.pth", model, training=training)
    read = read_checkpoint(path)
    assert (read.config, read.vocabulary, read.data, read.step, read.metrics) == (CONFIG, WORDS, DATA, 500, METRICS)
    assert read.training == training
    assert read.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, read.weights[name]) for name, value in model.state_dict().items())
    assert read_checkpoint(save(tmp_path / "best.pth", model)).training is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.pth", "last.pth"]


def test_the_keys_in_the_file(tmp_path, model, values):
    assert set(values) == {"format", "version", "model", "config", "vocabulary", "data", "step", "metrics"}
    assert (values["format"], values["version"]) == ("restr-checkpoint", 1)
    assert values["vocabulary"] == WORDS and values["config"]["vision"]["width"] == 24
    assert values["model"].keys() == model.state_dict().keys()
    assert "training" in torch.load(save(tmp_path / "last.pth", model, training={"best": 1}), weights_only=True)


def test_load_restr(tmp_path, model):
    path = save(tmp_path / "unc_500.pth", model)
    loaded = load_restr(path)
    assert not loaded.training and torch.equal(outputs(loaded), outputs(model))
    assert loaded.vocabulary == WORDS
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.provenance == {"file": str(path), "sha256": digest, "data": DATA, "step": 500, "metrics": METRICS}


def test_of_a_folder_the_best_is_loaded(tmp_path, model):
    assert f"{tmp_path}/best.pth: no such checkpoint" in refused(load_restr, tmp_path)
    path = save(tmp_path / "best.pth", model)
    loaded = load_restr(tmp_path)
    assert torch.equal(outputs(loaded), outputs(model)) and loaded.provenance["file"] == str(path)


@pytest.fixture
def allocations(monkeypatch):
    """The devices on which models are built from here on."""
    devices = []

    def build(config):
        devices.append(torch.empty(0).device.type)
        return build_restr(config)

    monkeypatch.setattr(weights, "build_restr", build)
    return devices


def test_a_config_larger_than_its_weights_allocates_nothing(tmp_path, values, allocations):
    for part, name, value in (
        ("vision", "width", 12_000),
        ("vision", "image_size", (1600, 1600)),
        ("vision", "depth", 40),
        ("language", "vocabulary_size", 9_000_000),
        ("language", "mlp_ratio", 60.0),
    ):
        broken = copy.deepcopy(values)
        broken["config"][part][name] = value
        broken["vocabulary"] = None
        path = store(tmp_path / "broken.pth", broken)
        assert str(path) in refused(load_restr, path)
    assert set(allocations) == {"meta"}


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path, values, allocations):
    values["config"]["vision"]["width"] = 9_600
    with torch.device("meta"):
        shapes = build_restr(ReSTRConfig.from_dict(values["config"])).state_dict()
    values["model"] = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    path = store(tmp_path / "expanded.pth", values)
    assert path.stat().st_size < 2**20
    assert "claims more" in refused(load_restr, path)
    values["model"] = shapes
    assert "not a float tensor" in refused(load_restr, store(tmp_path / "meta.pth", values))
    assert set(allocations) == {"meta"}


@pytest.mark.parametrize("heads", [5, 1000])
def test_numbers_that_make_no_model_are_refused(tmp_path, values, heads):
    for part in ("vision", "language", "fusion"):
        broken = copy.deepcopy(values)
        broken["config"][part]["heads"] = heads
        refused(load_restr, store(tmp_path / "broken.pth", broken))


def test_weights_that_do_not_fit_are_refused(tmp_path, values):
    name = "fusion.proj_v.weight"
    whole = values["model"]
    for broken in (
        {key: value for key, value in whole.items() if key != name},
        {**whole, "fusion.extra": torch.zeros(3)},
        {**whole, 5: torch.zeros(3)},
        {**whole, name: torch.zeros(24, 25)},
        {**whole, name: torch.zeros(24, 24, dtype=torch.long)},
        {**whole, name: torch.zeros(24, 24).to_sparse()},
        {**whole, name: [0.0]},
        {},
    ):
        path = store(tmp_path / "broken.pth", {**values, "model": broken})
        message = refused(load_restr, path)
        assert str(path) in message and (name in message or "left over" in message or "missing" in message)


@pytest.mark.parametrize("name", ["model", "config", "vocabulary", "data", "step", "metrics", "training", "version"])
def test_parts_of_a_wrong_kind_are_refused(tmp_path, values, name):
    for wrong in (3.5, "text", torch.zeros(2), [1, [2]]):
        path = store(tmp_path / "broken.pth", {**values, name: wrong})
        assert str(path) in refused(read_checkpoint, path)
    if name != "training":
        del values[name]
        refused(read_checkpoint, store(tmp_path / "broken.pth", values))


def test_a_tensor_that_holds_less_than_it_claims_is_refused_in_memory_too(values):
    claim = {"fusion.proj_v.weight": torch.zeros(1).expand(24, 24)}
    assert "claims more" in refused(weights.check_weights, CONFIG, {**values["model"], **claim})


@pytest.mark.parametrize("step", [-1, 10**12 + 1])
def test_a_step_that_cannot_be_is_refused(tmp_path, values, step):
    assert "'step'" in refused(read_checkpoint, store(tmp_path / "broken.pth", {**values, "step": step}))
    edge = abs(step) - 1  # 0 and the largest step
    assert read_checkpoint(store(tmp_path / "edge.pth", {**values, "step": edge})).step == edge


def test_a_vocabulary_of_another_length_is_refused(tmp_path, values):
    for words in (WORDS[:-1], [*WORDS, "more"], [*WORDS[:-1], 5]):
        path = store(tmp_path / "broken.pth", {**values, "vocabulary": words})
        assert "vocabulary" in refused(read_checkpoint, path)


def hostile_files(folder, whole, values):
    """(name, bytes) of files that are no checkpoints."""
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 30):
        yield f"cut{size}", whole[:size]
    yield "text", b"not a checkpoint\n" * 50
    yield "zip", b"PK\x03\x04" + bytes(100)
    for i, attack in enumerate(attacks(folder / "ran")):
        yield f"pickle{i}", pickle.dumps(attack)
        yield f"pickle{i}b", pickle.dumps(attack, protocol=2)
        for name in ("model", "training", "format"):
            stream = io.BytesIO()
            torch.save({**values, name: {"x": attack}}, stream)
            yield f"torch{i}{name}", stream.getvalue()
    for i, value in enumerate(([1], 5, None, {}, {"format": torch.zeros(3)}, {"model": 5}, {1: {"encoder_l.": 3}})):
        stream = io.BytesIO()
        torch.save(value, stream)
        yield f"foreign{i}", stream.getvalue()


def test_damaged_foreign_and_hostile_files(tmp_path, values, recwarn):
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, content in hostile_files(tmp_path, whole, values):
        file = write(tmp_path / name, content)
        assert str(file) in refused(load_restr, file)
        assert not (tmp_path / "ran").exists(), name
    for path in (tmp_path / "absent.pth", tmp_path):
        assert "no such checkpoint" in refused(load_restr, path)
    assert [str(warning.message) for warning in recwarn] == []  # they would be lines beside the one


def test_a_file_of_the_old_format_is_refused_with_what_to_do(tmp_path, values):
    torch.save(values, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "before 1.6: then load it and torch.save it again" in refused(load_restr, tmp_path / "old.pth")


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict", "module."])
def test_raw_reference_files(tmp_path, model, monkeypatch, wrap):
    state = to_reference(model)
    if wrap == "module.":
        state = {f"module.{name}": value for name, value in state.items()}
    path = store(tmp_path / "unc_25000.pth", {wrap: state} if wrap in ("model", "state_dict") else state)
    given_config = load_restr(path, reference=REFERENCE)
    assert torch.equal(outputs(given_config), outputs(model)) and given_config.vocabulary is None
    assert given_config.provenance["data"] == {"image_size": [32, 48]}
    assert str(path) in refused(load_restr, path)  # the default size is 768 wide
    monkeypatch.setattr(checkpoint_module, "reference_config", lambda names: REFERENCE)
    assert torch.equal(outputs(load_restr(path)), outputs(model))


def test_broken_reference_files(tmp_path, model, allocations):
    state = to_reference(model)
    embedding = "encoder_l.embedding.weight"
    for broken in (
        {name: value for name, value in state.items() if name != embedding},
        {**state, embedding: 5},
        {**state, embedding: torch.tensor(5.0)},
        {**state, embedding: torch.zeros(1).expand(9_000_000, 12)},
        {**state, "encoder_q.weight": torch.zeros(1)},
        {**state, 7: torch.zeros(1)},
    ):
        path = store(tmp_path / "broken.pth", broken)
        assert str(path) in refused(lambda path=path: load_restr(path, reference=REFERENCE))
    store(path, state)
    for part, name, value in (
        ("v_backbone", "d_model", 12_000),
        ("v_backbone", "d_model", "24"),
        ("l_backbone", "x", 1),
    ):
        config = copy.deepcopy(REFERENCE)
        config[part] = {**config[part], name: value} if name in config[part] else {name: value}
        assert str(path) in refused(lambda config=config: load_restr(path, reference=config))
    assert set(allocations) == {"meta"}


def test_a_stored_checkpoint_of_the_authors_code(tmp_path):
    stored = torch.load(ROOT / "tests/data/micro_default.pt", weights_only=True)
    path = store(tmp_path / "unc_25000.pth", stored["state_dict"])
    model = load_restr(path, reference=stored["config"])
    image, _, ids = map(torch.from_numpy, batch(0, size=64, words=24))
    for ours, theirs in zip(model(image, ids), (stored["pixel_pred"], stored["patch_pred"]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
