"""`python -m models.convert`: a reference checkpoint to a self-describing one."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from models import from_reference, load_restr, to_reference
from models.convert import main
from models.restr import build_restr
from tests.conftest import ROOT
from tests.support.small_model import CONFIG, REFERENCE, WORDS, outputs
from utils.cli import run_main


@pytest.fixture
def inputs(tmp_path):
    """The three files that the script reads."""
    torch.manual_seed(0)
    state = to_reference(build_restr(CONFIG))
    torch.save(state, tmp_path / "ref.pth")
    (tmp_path / "config.json").write_text(json.dumps(REFERENCE))
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    return state


def arguments(folder, out="weights/X/unc_25000.pth", **changes):
    files = {"reference": "ref.pth", "config": "config.json", "vocabulary": "words.txt", **changes}
    command = [str(folder / files.pop("reference"))]
    for name, file in files.items():
        command += [f"--{name}", str(folder / file)] if file is not None else []
    return [*command, "--out", str(folder / out)]


def run(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "models.convert", *command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_command(tmp_path, inputs):
    done = run(arguments(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "weights/X/unc_25000.pth"
    assert done.stdout.startswith(str(out)) and "step 25000" in done.stdout
    converted = load_restr(out)
    assert torch.equal(outputs(converted), outputs(from_reference(inputs, REFERENCE)))
    back = to_reference(converted)
    assert all(torch.equal(value, inputs[name]) for name, value in back.items())
    assert converted.vocabulary == WORDS and converted.provenance["step"] == 25000
    sha256 = hashlib.sha256("\n".join(WORDS).encode()).hexdigest()
    expected = {"dataset": "unc", "image_size": [32, 48], "vocabulary_sha256": sha256}
    assert converted.provenance["data"] == expected


def converted(monkeypatch, capsys, command):
    """Exit code and standard error of the script, run in this process."""
    monkeypatch.setattr(sys, "argv", ["convert.py", *command])
    with pytest.raises(SystemExit) as left:
        run_main(main)
    return left.value.code, capsys.readouterr().err


def test_data_set_and_step(tmp_path, inputs, monkeypatch, capsys):
    for out, dataset, expected in (
        ("unc+_500.pth", None, ("unc+", 500)),
        ("Gref_umd_7.pth", None, ("Gref_umd", 7)),
        ("mine.pth", None, (None, 0)),
        ("mine_1000000000000.pth", "referit", ("referit", 10**12)),
    ):
        extra = ["--dataset", dataset] if dataset else []
        assert converted(monkeypatch, capsys, [*arguments(tmp_path, out), *extra]) == (0, "")
        provenance = load_restr(tmp_path / out).provenance
        assert (provenance["data"]["dataset"], provenance["step"]) == expected


def test_errors(tmp_path, inputs, monkeypatch, capsys):
    (tmp_path / "damaged.pth").write_bytes((tmp_path / "ref.pth").read_bytes()[:2000])
    (tmp_path / "other.json").write_text(json.dumps({**REFERENCE, "l_backbone": {"d_lang": "12"}}))
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "short.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    (tmp_path / "file").write_text("")
    assert converted(monkeypatch, capsys, arguments(tmp_path, "ours_1.pth"))[0] == 0
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
        code, error = converted(monkeypatch, capsys, arguments(tmp_path, **{"out": "X/unc_1.pth", **changes}))
        assert code == 2 and error.count("\n") == 1 and named in error, (changes, error)
        assert not (tmp_path / "X").exists(), changes
    assert (tmp_path / "ours_1.pth").read_bytes() == ours
