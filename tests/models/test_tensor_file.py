"""models/tensor_file.py: files of torch.save as people have them give their tensors, and run no code."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
import torch

from models import load_restr, to_reference
from models.tensor_file import load_tensors
from tests.models.test_pretrained import loaded, source
from tests.support.hostile import attacks, refused
from tests.support.small_model import REFERENCE, outputs, tiny_model

BESIDE = {
    "args": argparse.Namespace(lr=1e-4, out=pathlib.Path("runs"), nested=argparse.Namespace(best=np.float32(0.5))),
    "best_acc": np.float64(81.5),
    "epoch": np.int64(3),
    "history": np.arange(4.0),
    "dtype": np.dtype("float32"),
    "names": {"a", "b"},
    "counts": collections.Counter("aab"),
    "groups": collections.defaultdict(list, {"x": [1]}),
    "device": torch.device("cpu"),
    "type": torch.float16,
    "shape": torch.Size([2, 3]),
}
every_protocol = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


@every_protocol
def test_weights_are_read_whatever_lies_beside_them(tmp_path, protocol):
    model = tiny_model()
    file = tmp_path / "unc_25000.pth"
    torch.save({"model": to_reference(model), **BESIDE}, file, pickle_protocol=protocol)
    assert torch.equal(outputs(load_restr(file, reference=REFERENCE)), outputs(model))
    state = source()
    torch.save({"model": state, **BESIDE}, tmp_path / "vit.pth", pickle_protocol=protocol)
    assert all(torch.equal(value, state[name]) for name, value in loaded(tmp_path / "vit.pth").items())


@every_protocol
def test_code_is_refused_in_every_protocol(tmp_path, protocol):
    for attack in [*attacks(tmp_path / "ran"), torch.nn.Linear(2, 2)]:
        values = {"model": {"x": torch.ones(2)}, "args": argparse.Namespace(x=attack)}
        torch.save(values, tmp_path / "a.pth", pickle_protocol=protocol)
        assert "which is not part of a checkpoint" in refused(load_tensors, tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@every_protocol
def test_tensors_of_every_kind_are_those_of_torch_load(tmp_path, protocol):
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
    values = {kind: (10 * torch.randn(3, 4)).to(getattr(torch, kind)) for kind in kinds}
    base = torch.arange(24.0).view(4, 6)
    values |= {"view": base[1:3, ::2], "turned": base.T, "shared": base, "scalar": torch.tensor(3), "text": "x"}
    values |= {"none": torch.ones(0, 5), "list": [torch.ones(1), {5: torch.zeros(2)}]}
    values |= {"parameter": torch.nn.Parameter(torch.ones(2))}
    torch.save(values, tmp_path / "a.pth", pickle_protocol=protocol)
    found, expected = load_tensors(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=False)
    assert found.pop("text") == expected.pop("text") == "x"
    torch.testing.assert_close(found, {**expected, "parameter": expected["parameter"].data}, rtol=0, atol=0)
    assert found["view"].stride() == expected["view"].stride()
