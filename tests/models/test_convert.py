"""`python -m models.convert`: a reference checkpoint to a self-describing one."""

import hashlib
import json
import runpy
import sys

import pytest
import torch

from models import from_reference, load_restr, to_reference
from models.restr import build_restr
from tests.support.small_model import CONFIG, REFERENCE, WORDS, outputs


@pytest.fixture
def inputs(tmp_path):
    """The three files that the script reads."""
    torch.manual_seed(0)
    state = to_reference(build_restr(CONFIG))
    torch.save(state, tmp_path / "ref.pth")
    (tmp_path / "config.json").write_text(json.dumps(REFERENCE))
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    return state


@pytest.fixture
def convert(tmp_path, inputs, monkeypatch, capsys):
    """convert(out, *flags, FLAG=file): `python -m models.convert` in this process -> (exit code, output, errors)."""

    def run(out="weights/X/unc_25000.pth", *flags, reference="ref.pth", **changes):
        files = {"config": "config.json", "vocabulary": "words.txt", "out": out, **changes}
        given = [f"--{name}={tmp_path / file}" for name, file in files.items() if file is not None]
        monkeypatch.setattr(sys, "argv", ["convert.py", str(tmp_path / reference), *given, *flags])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("models.convert", run_name="__main__")
        return left.value.code, *capsys.readouterr()

    return run


def test_the_command(tmp_path, inputs, convert):
    code, said, error = convert()
    assert (code, error) == (0, "")
    out = tmp_path / "weights/X/unc_25000.pth"
    assert said.startswith(str(out)) and "step 25000" in said
    converted = load_restr(out)
    assert torch.equal(outputs(converted), outputs(from_reference(inputs, REFERENCE)))
    back = to_reference(converted)
    assert all(torch.equal(value, inputs[name]) for name, value in back.items())
    assert converted.vocabulary == WORDS and converted.provenance["step"] == 25000
    sha256 = hashlib.sha256("\n".join(WORDS).encode()).hexdigest()
    expected = {"dataset": "unc", "image_size": [32, 48], "vocabulary_sha256": sha256}
    assert converted.provenance["data"] == expected


@pytest.mark.parametrize(
    ("out", "flags", "expected"),
    [
        ("unc+_500.pth", [], ("unc+", 500)),
        ("Gref_umd_7.pth", [], ("Gref_umd", 7)),
        ("mine.pth", [], (None, 0)),
        ("mine_1000000000000.pth", ["--dataset", "referit"], ("referit", 10**12)),
    ],
)
def test_data_set_and_step(tmp_path, convert, out, flags, expected):
    assert convert(out, *flags)[::2] == (0, "")
    provenance = load_restr(tmp_path / out).provenance
    assert (provenance["data"]["dataset"], provenance["step"]) == expected


def test_errors(tmp_path, convert):
    (tmp_path / "damaged.pth").write_bytes((tmp_path / "ref.pth").read_bytes()[:2000])
    (tmp_path / "other.json").write_text(json.dumps({**REFERENCE, "l_backbone": {"d_lang": "12"}}))
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "short.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    (tmp_path / "file").write_text("")
    assert convert("ours_1.pth")[0] == 0
    ours = (tmp_path / "ours_1.pth").read_bytes()
    for changes, named in (
        ({"reference": "absent.pth"}, "absent.pth"),
        ({"reference": "damaged.pth"}, "damaged.pth"),
        ({"reference": "words.txt"}, "words.txt"),
        ({"reference": "ours_1.pth"}, "self-describing"),
        ({"config": None}, "ref.pth"),  # the default size does not fit
        ({"config": "absent.json"}, "absent.json"),
        ({"config": "other.json"}, "configuration"),
        ({"config": "list.json"}, "configuration"),
        ({"config": "text.json"}, "text.json"),
        ({"vocabulary": "absent.txt"}, "absent.txt"),
        ({"vocabulary": "short.txt"}, "short.txt"),
        ({"vocabulary": None}, "--vocabulary"),
        ({"out": "file/unc_1.pth"}, "file"),
        ({"out": "ours_1.pth"}, "ours_1.pth: exists"),
        ({"out": "X/unc_1000000000001.pth"}, "at most 1,000,000,000,000"),
    ):
        code, _, error = convert(**{"out": "X/unc_1.pth", **changes})
        assert code == 2 and error.count("\n") == 1 and named in error, (changes, error)
        assert not (tmp_path / "X").exists(), changes
    assert (tmp_path / "ours_1.pth").read_bytes() == ours
