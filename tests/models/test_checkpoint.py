"""Checkpoints: written and read, damaged, foreign, hostile; ours and the reference's."""

import hashlib
import io
import pickle

import pytest
import torch

from models import checkpoint as checkpoint_module
from models import load_restr, restr, to_reference
from models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from models.config import ReSTRConfig
from models.restr import build_restr
from tests.support.hostile import UNSHOWN, attacks, refused, write
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


def test_what_is_saved_is_read(tmp_path, model, values):
    training = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "best": 0.5, "random": [1, 2]}
    path = save(tmp_path / "last.pth", model, training=training)
    read = read_checkpoint(path)
    assert (read.config, read.vocabulary, read.data, read.step, read.metrics) == (CONFIG, WORDS, DATA, 500, METRICS)
    assert read.training == training
    assert read.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, read.weights[name]) for name, value in model.state_dict().items())
    assert read_checkpoint(tmp_path / "whole.pth").training is None
    keys = {"format", "version", "model", "config", "vocabulary", "data", "step", "metrics"}
    assert values.keys() == keys and torch.load(path, weights_only=True).keys() == keys | {"training"}
    assert (values["format"], values["version"], values["vocabulary"]) == ("restr-checkpoint", 1, WORDS)
    assert values["config"]["vision"]["width"] == 24
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pth", "whole.pth"]


def test_load_restr_of_a_file_and_of_the_best_in_a_folder(tmp_path, model):
    assert f"{tmp_path}/best.pth: no such checkpoint" in refused(load_restr, tmp_path)
    path = save(tmp_path / "best.pth", model)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for named in (path, tmp_path):
        loaded = load_restr(named)
        assert not loaded.training and torch.equal(outputs(loaded), outputs(model)) and loaded.vocabulary == WORDS
        assert loaded.provenance == {"file": str(path), "sha256": digest, "data": DATA, "step": 500, "metrics": METRICS}


@pytest.fixture
def allocations(monkeypatch):
    """The devices on which models are built from here on."""
    devices = []

    def build(config):
        devices.append(torch.empty(0).device.type)
        return build_restr(config)

    monkeypatch.setattr(restr, "build_restr", build)
    return devices


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision", "width", 12_000),
        ("vision", "image_size", (1600, 1600)),
        ("vision", "depth", 40),
        ("language", "vocabulary_size", 9_000_000),
        ("language", "mlp_ratio", 60.0),
        *((part, "heads", heads) for part in ("vision", "language", "fusion") for heads in (5, 1000)),
    ],
)
def test_a_config_that_is_not_that_of_its_weights_allocates_nothing(tmp_path, values, allocations, part, name, value):
    values["config"][part][name] = value
    path = store(tmp_path / "broken.pth", {**values, "vocabulary": None})
    assert f"{path}: the weights do not fit its configuration: " in refused(load_restr, path)
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
    assert "not a tensor" in refused(load_restr, store(tmp_path / "meta.pth", values))
    assert set(allocations) == {"meta"}


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


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"step": -1}, "its 'step' is not"),
        ({"step": 10**12 + 1}, "its 'step' is not"),
        ({"vocabulary": WORDS[:-1]}, "its vocabulary is not"),
        ({"vocabulary": [*WORDS, "more"]}, "its vocabulary is not"),
        ({"vocabulary": [*WORDS[:-1], 5]}, "its vocabulary is not"),
        *(({"version": version}, "another version of this code") for version in (0, 2, 1.5, *UNSHOWN)),
    ],
    ids=range(10),
)
def test_values_that_cannot_be_are_refused(tmp_path, values, change, fault):
    assert fault in refused(read_checkpoint, store(tmp_path / "broken.pth", {**values, **change}))


def test_the_edges_of_the_step(tmp_path, values):
    for step in (0, 10**12):
        assert read_checkpoint(store(tmp_path / "edge.pth", {**values, "step": step})).step == step


def saved(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def hostile_files(folder, whole, values):
    """(name, bytes) of files that are no checkpoints."""
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 30):
        yield f"cut{size}", whole[:size]
    half = len(whole) // 2  # in a tensor
    yield "flipped", whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
    yield "text", b"not a checkpoint\n" * 50
    yield "zip", b"PK\x03\x04" + bytes(100)
    for i, attack in enumerate(attacks(folder / "ran")):
        yield f"pickle{i}", pickle.dumps(attack)
        yield f"pickle{i}b", pickle.dumps(attack, protocol=2)
        for name in ("model", "training", "format"):
            yield f"torch{i}{name}", saved({**values, name: {"x": attack}})
    for i, value in enumerate(([1], 5, None, {}, {"format": torch.zeros(3)}, {"model": 5}, {1: {"encoder_l.": 3}})):
        yield f"foreign{i}", saved(value)


def test_damaged_foreign_and_hostile_files(tmp_path, values, recwarn):
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, content in hostile_files(tmp_path, whole, values):
        file = write(tmp_path / name, content)
        assert str(file) in refused(load_restr, file)
        assert not (tmp_path / "ran").exists(), name
    assert "no such checkpoint" in refused(load_restr, tmp_path / "absent.pth")
    torch.save(values, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "before 1.6: then load it and torch.save it again" in refused(load_restr, tmp_path / "old.pth")
    assert [str(warning.message) for warning in recwarn] == []  # they would be lines beside the one


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
        {name: value for name, value in state.items() if name != "fusion_module.norm.weight"},
        *({**state, name: torch.zeros(1)} for name in ("encoder_q.weight", "fusion_module.extra.weight", 7)),
        {**state, "encoder_l.proj_lang.bias": torch.zeros(7)},
    ):
        path = store(tmp_path / "broken.pth", broken)
        assert str(path) in refused(lambda path=path: load_restr(path, reference=REFERENCE))
    store(path, state)
    vision = REFERENCE["v_backbone"]
    wrong = [{"v_backbone": {**vision, "d_model": value}} for value in (12_000, "24")]
    for change in (*wrong, {"l_backbone": {"x": 1}}, {"v_backbone": {}}):
        message = refused(lambda change=change: load_restr(path, reference=REFERENCE | change))
        assert str(path) in message and ("configuration" in message or "width" in message)
    assert set(allocations) == {"meta"}
