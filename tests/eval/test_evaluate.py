"""eval/evaluate.py from its command line, on prepared data written by hand."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.checkpoints import find_checkpoints, load_model
from eval.evaluate import main, parse
from eval.evaluator import EvalSettings, evaluate
from eval.metrics import SampleScore, summarise
from eval.visualise import spread
from models import load_restr
from models.reference import config_from_reference, reference_config, to_reference
from models.restr import build_restr
from tests.conftest import ROOT
from tests.support.memory_split import COUNT, write_folder
from tests.support.small_model import SIZE, VOCABULARY, write_checkpoint
from utils.cli import run_main
from utils.errors import InputError
from utils.prepared import PreparedSplit


@pytest.fixture
def batches(place):
    return place / "unc_32x48_batch"


def run(*arguments: object) -> None:
    main(["--num_workers", "0", "--device", "cpu", "--set", "val", *map(str, arguments)])


def complaint(capsys, *arguments: object) -> str:
    """The one line that the script says before it leaves with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_main(lambda: run(*arguments))
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1 and "error: " in error and "Traceback" not in error
    return error


def metrics_in(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_metrics_and_samples(place, batches, tmp_path, capsys):
    checkpoint = place / "exp" / "unc_500.pth"
    run("--data-dir", batches, "--checkpoint", checkpoint, "--output-dir", tmp_path, "--input_size", "32,48")
    metrics, split = metrics_in(tmp_path), PreparedSplit(batches, "val")
    scores = evaluate(load_restr(checkpoint, "cpu"), split, EvalSettings(), progress=False)
    assert len(scores) == COUNT
    expected = summarise(scores, "unc")
    assert {key: metrics[key] for key in expected} == expected
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [SampleScore(**row) for row in rows] == scores
    assert (metrics["dataset"], metrics["split"], metrics["checkpoint"]["step"]) == ("unc", "val", 500)
    settings = {"threshold": 1e-9, "pad": "grey", "antialias": False, "batch_size": 8, "amp": None}
    assert metrics["settings"] == settings | {"image_size": list(SIZE)}
    assert len(metrics["checkpoint"]["sha256"]) == len(metrics["data"]["meta_sha256"]) == 64
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|\d+\.\d+.*", metrics["code"]) and metrics["device"] == "cpu"
    assert metrics["libraries"]["torch"] == torch.__version__ and all(metrics["libraries"].values())
    assert metrics["command"] and metrics["date"].startswith("20") and metrics["python"].startswith("3.")
    shown = capsys.readouterr().out
    assert f"{expected['oIoU']:.2f}" in shown and f"{expected['mIoU']:.2f}" in shown and "by number of tokens" in shown


def test_batches_of_the_reference_give_the_same_scores(place, batches, tmp_path):
    split, folder = PreparedSplit(batches, "val"), tmp_path / "unc_batch" / "val_batch"
    folder.mkdir(parents=True)
    for i in range(COUNT):
        ids, sentence, image_name = split.text(i)
        texts = {"text_batch": ids, "sent_batch": [sentence], "im_name_batch": image_name}
        np.savez(folder / f"{split.name(i)}.npz", im_batch=split.image(i), mask_batch=split.mask(i), **texts)
    for control in ([], ["--rotate_expressions"]):
        for name, data in (("ours", batches), ("theirs", folder.parent)):  # of best.pth
            run("--data_dir", data, "--checkpoint", place / "exp", *control, "--output_dir", tmp_path / name)
        ours, theirs = ((tmp_path / name / "samples.jsonl").read_text() for name in ("ours", "theirs"))
        assert ours == theirs


def test_checkpoints_are_found_by_step(place, batches, tmp_path, capsys):
    common = ("--data_dir", batches, "--restore_refseg", place / "exp")
    run(*common, "--iters", 500, 5000, "--output_dir", tmp_path / "two")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"500", "5000"}
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("unc val")]) == 2
    run(*common, "--iters", 0, "--output_dir", tmp_path / "every")
    assert metrics_in(tmp_path / "every")["checkpoint"]["step"] == 5000
    run(*common, "--output_dir", tmp_path / "best")
    assert metrics_in(tmp_path / "best")["checkpoint"]["file"].endswith("best.pth")


@pytest.mark.parametrize(
    ("flags", "drawn"),
    [
        ([], []),
        (["--report"], []),
        (["--is_vis", "3"], [0, 6, 13]),
        (["--is_vis=3", "--report"], [0, 6, 13]),  # which shows all
        (["--is_vis"], [*range(COUNT)]),
        (["--is_vis", "0", "--rotate_expressions"], [*range(COUNT)]),
    ],
)
def test_what_was_written_is_told_and_can_be_opened(place, monkeypatch, capsys, tmp_path, flags, drawn):
    monkeypatch.chdir(tmp_path)
    data, checkpoint = (os.path.relpath(place / name) for name in ("unc_32x48_batch", "exp"))
    run("--data_dir", data, "--checkpoint", checkpoint, "--output_dir", "out", *flags)
    lines = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    told = {path.split()[0] for _, path in (line.split(maxsplit=1) for line in lines)}
    assert told == {f"out/{path.name}" for path in (tmp_path / "out").iterdir()}
    assert "out/metrics.json" in told and ("out/report.html" in told) == ("--report" in flags)
    assert {path.name for path in (tmp_path / "out").glob("vis/*_pred.png")} == {f"unc_val_{i}_pred.png" for i in drawn}
    assert not drawn or f"{len(drawn)} of {COUNT} expressions" in lines[-1]


def test_is_vis_alone_is_bounded():
    assert parse(["--data_dir", "x", "--checkpoint", "x", "--is_vis", "--set", "val"]).is_vis == 100
    indices = sorted(spread(10_834, 100))
    assert len(indices) == 100 and (indices[0], indices[-1]) == (0, 10_833)
    assert max(np.diff(indices)) - min(np.diff(indices)) <= 1


@pytest.mark.parametrize(
    ("folder", "steps", "found"),
    [
        ("weights/unc", [0], ["unc/unc_5000.pth", "unc/unc_10000.pth"]),  # each 5000th of the data set
        ("weights/restr", [500], ["restr_unc/unc_500.pth"]),  # the authors' default folder, which is ours with its name
        ("weights/test/", [25000], ["test/test_25000.pth"]),  # the authors' files are named by folder
    ],
)
def test_names_of_checkpoints(tmp_path, folder, steps, found):
    names = ("unc_0", "unc_5000", "unc_7500", "unc_10000", "unc+_15000", "unc_x", "best")
    weights = tmp_path / "weights"
    for name in (*(f"unc/{name}.pth" for name in names), "restr_unc/unc_500.pth", "test/test_25000.pth"):
        (weights / name).parent.mkdir(parents=True, exist_ok=True)
        (weights / name).touch()
    assert find_checkpoints(tmp_path / folder, steps, "unc") == [weights / name for name in found]


def test_the_control_reports_both_numbers_and_folders_name_what_is_not_default(place, batches, capsys):
    common = ("--data_dir", batches, "--restore_refseg", place / "exp", "--iters", 500)
    run(*common)
    run(*common, "--rotate_expressions")
    names = ("eval_unc_val_500", "eval_unc_val_500_rotated")
    plain, rotated = (metrics_in(place / "exp" / name) for name in names)
    of_1_0 = {"rotated": 11, "oIoU_unrotated": plain["oIoU"]}
    told = {"expressions": "rotated", "told": "judged against the next ref of their image"}
    assert rotated["control"] == of_1_0 | told | {"changed": 11, "oIoU_plain": plain["oIoU"]}
    assert "control" not in plain
    assert rotated["oIoU"] != plain["oIoU"] and rotated["n_samples"] == plain["n_samples"]
    assert f"oIoU {plain['oIoU']:.2f} -> {rotated['oIoU']:.2f}" in capsys.readouterr().out
    run(*common, "--eval_pad", "black", "--eval_antialias", "--rotate_expressions", "--threshold", "0.5")
    found = {path.parent.name for path in (place / "exp").glob("eval_*/metrics.json")}
    assert found == {*names, "eval_unc_val_500_rotated_black_antialias_threshold0.5"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "testA"], "testA"),
        (["--input-size", "64,64"], "--input_size 64,64 .it takes 32,48"),
        (["--input-size", "large"], "--input_size"),
        (["--no_decoder"], "--no_decoder .it has a decoder"),
        (["--is_shared"], "--is_shared"),
        (["--v_backbone", "vit_base_patch16_384"], "--v_backbone vit_base_patch16_384"),
        (["--l_backbone", "transformer_glove"], "--l_backbone transformer_glove .it has 1 blocks of width 12"),
        (["--l_backbone", "bert"], "--l_backbone bert: choose from"),
        (["--batch_size", "0"], "--batch_size: 0"),
        (["--iters", "500"], "--iters"),
        (["--restore_refseg", "."], "either --restore_refseg"),
        (["--against", "old"], "give --report too"),
        (["--device", "toaster"], "--device toaster"),
        (["--expressions", "shufled"], "--expressions"),
        (["--expressions", "dropped", "--rotate_expressions"], "means --expressions rotated, not dropped"),
        (["--first_k", "3"], "--first_k goes with --expressions first_k"),
        (["--expressions", "first_k", "--first_k", "0"], "--first_k: 0"),
    ],
)
def test_bad_flags(place, batches, tmp_path, capsys, arguments, says):
    common = ["--data_dir", batches, "--checkpoint", place / "exp" / "best.pth", "--output_dir", tmp_path / "out"]
    error = complaint(capsys, *common, *arguments)
    assert re.search(says, error), error
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_lists_what_is_there(place, batches, tmp_path, capsys):
    common = ("--data_dir", batches, "--restore_refseg")
    error = complaint(capsys, *common, place / "exp", "--iters", 500, 700)
    assert "no unc_700.pth; it holds best.pth, unc_500.pth, unc_5000.pth" in error and "--keep" in error
    assert "it holds no .pth file" in complaint(capsys, *common, tmp_path, "--iters", 0)
    assert "no such folder" in complaint(capsys, *common, tmp_path / "none", "--iters", 500)
    (tmp_path / "unc_500.pth").write_bytes(b"not a checkpoint")
    assert "unc_500.pth" in complaint(capsys, *common, tmp_path, "--iters", 500)


def test_a_checkpoint_of_other_data(place, batches, tmp_path, capsys):
    write_checkpoint(tmp_path / "words.pth", words=[*VOCABULARY.words[:-1], "other"])
    write_checkpoint(tmp_path / "other.pth", dataset="unc+")
    common = ("--data_dir", batches, "--output_dir", tmp_path / "out", "--checkpoint")
    assert "the vocabulary of" in complaint(capsys, *common, tmp_path / "words.pth")
    assert "trained on unc+" in complaint(capsys, *common, tmp_path / "other.pth")
    run(*common, tmp_path / "other.pth", "--allow_other_dataset")
    wide = write_folder(tmp_path, size=(48, 48))
    error = complaint(capsys, "--data_dir", wide, "--checkpoint", place / "exp" / "best.pth")
    assert "--img-size 48,48" in error and "takes 32,48" in error


def test_from_inside_the_folder(tmp_path):
    command = [sys.executable, "evaluate.py", "--data_dir", str(tmp_path / "none"), "--checkpoint", "x.pth"]
    done = subprocess.run(command, cwd=ROOT / "eval", capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("evaluate.py: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("case", ["default", "shared", "no_decoder"])
def test_a_raw_reference_file_of_the_default_size(tmp_path, case):
    with torch.device("meta"):
        config = config_from_reference(reference_config([], shared=case == "shared"), 50)
        decoder = replace(config.decoder, enabled=case != "no_decoder")
        names = to_reference(build_restr(replace(config, decoder=decoder)))
    torch.save({name: torch.zeros(value.shape) for name, value in names.items()}, tmp_path / "raw.pth")
    flags = {"v_backbone": None, "l_backbone": None, "input_size": None, "is_shared": False, "no_decoder": False}
    if case == "shared":
        with pytest.raises(InputError, match="is_shared"):
            load_model(tmp_path / "raw.pth", "cpu", flags)
    model = load_model(tmp_path / "raw.pth", "cpu", flags | {"is_shared": case == "shared"})
    assert model.config.fusion.shared == (case == "shared") and model.config.fusion.layers == 2
    assert (model.decoder is None) == (case == "no_decoder") and model.image_size == (480, 480)
    if case == "default":
        with pytest.raises(InputError, match="raw.pth"):
            load_model(tmp_path / "raw.pth", "cpu", flags | {"input_size": (320, 320)})
