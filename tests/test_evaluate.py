"""eval/evaluate.py from its command line, on a batch folder written by hand to SPEC section 4, and its pictures."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.evaluate import main
from eval.evaluator import EvalSettings, Prediction, evaluate
from eval.metrics import SampleScore, summarise
from eval.visualise import write_prediction
from models import load_restr
from models.checkpoint import Checkpoint, save_checkpoint
from tests.test_evaluator import SIZE, WORDS, tiny_model
from utils.batches import BatchSplit
from utils.errors import InputError, run_main
from utils.text import SPECIAL_WORDS, Vocabulary

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = Vocabulary([*SPECIAL_WORDS, *(f"w{i}" for i in range(len(SPECIAL_WORDS), WORDS))])
REFS = ((0, 3), (0, 1), (1, 2), (2, 1), (2, 1), (3, 2))  # (image, expressions)
COUNT = sum(count for _, count in REFS)


def write_folder(root: Path, split: str = "val", dataset: str = "unc", size=SIZE) -> Path:
    """A compact batch folder of four noise images; returns it."""
    rng = np.random.default_rng(1)
    folder = root / f"{dataset}_{size[0]}x{size[1]}_batch"
    batches, images, labels = (folder / f"{split}_{kind}" for kind in ("batch", "image", "label"))
    for path in (batches, images, labels):
        path.mkdir(parents=True)
    sizes = [(37, 50), (60, 45), (32, 48), (25, 30)]
    for number, (height, width) in enumerate(sizes):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        picture.save(images / f"COCO_train2014_{number:012d}.jpg")
    number = 0
    for ref, (image, expressions) in enumerate(REFS):
        Image.fromarray(rng.random(sizes[image]) < 0.4).save(labels / f"{ref}.png")
        for _ in range(expressions):
            sentence = " ".join(rng.choice(VOCABULARY.words[4:], rng.integers(1, 7)))
            name = f"COCO_train2014_{image:012d}"
            np.savez(
                batches / f"{dataset}_{split}_{number}.npz",
                text_batch=VOCABULARY.ids(sentence),
                sent_batch=np.array([sentence]),
                im_name_batch=np.array(name),
                image_file=np.array(f"{name}.jpg"),
                label_file=np.array(f"{ref}.png"),
            )
            number += 1
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in VOCABULARY.words))
    words = {"file": "vocabulary.txt", "source": "unc", "size": len(VOCABULARY), "sha256": VOCABULARY.sha256}
    counts = {"refs": len(REFS), "expressions": number, "images": len(sizes), "complete": True}
    meta = {"format": "restr-batches", "version": 1, "dataset": dataset, "image_size": list(size), "text_length": 20}
    meta |= {"vocabulary": words, "self_contained": False, "splits": {split: counts}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def save(path: Path, step: int = 500, dataset: str = "unc", words: list[str] | None = None) -> None:
    model = tiny_model()
    path.parent.mkdir(exist_ok=True, parents=True)
    data = {"dataset": dataset, "image_size": list(SIZE), "vocabulary_sha256": VOCABULARY.sha256}
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, words or VOCABULARY.words, data, step))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with batches and, in exp/, the checkpoints of steps 500 and 5000 and the best."""
    root = tmp_path_factory.mktemp("evaluate")
    write_folder(root)
    for name, step in (("unc_500", 500), ("unc_5000", 5000), ("best", 5000)):
        save(root / "exp" / f"{name}.pth", step)
    return root


@pytest.fixture
def batches(place):
    return place / "unc_32x48_batch"


def run(*arguments: object) -> None:
    main(["--num_workers", "0", "--device", "cpu", *map(str, arguments)])


def complaint(capsys, *arguments: object) -> str:
    """The one line that the script says before it leaves with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_main(lambda: run(*arguments))
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1 and "error: " in error and "Traceback" not in error
    return error


def test_metrics_and_samples(place, batches, tmp_path, capsys):
    checkpoint = place / "exp" / "unc_500.pth"
    run(
        "--data-dir",
        batches,
        "--set",
        "val",
        "--checkpoint",
        checkpoint,
        "--output-dir",
        tmp_path,
        "--input_size",
        "32,48",
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    split = BatchSplit(batches, "val")
    scores = evaluate(load_restr(checkpoint), split, EvalSettings(), progress=False)
    assert len(scores) == COUNT
    expected = summarise(scores, "unc")
    assert {key: metrics[key] for key in expected} == expected
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [SampleScore(**row) for row in rows] == scores
    assert (metrics["dataset"], metrics["split"], metrics["checkpoint"]["step"]) == ("unc", "val", 500)
    assert metrics["settings"] == {
        **{"threshold": 1e-9, "pad": "grey", "antialias": False, "batch_size": 8, "amp": False},
        "image_size": list(SIZE),
    }
    assert len(metrics["checkpoint"]["sha256"]) == len(metrics["data"]["meta_sha256"]) == 64
    assert (
        metrics["code"]
        and metrics["libraries"]["torch"] == torch.__version__
        and metrics["date"]
        and metrics["command"]
    )
    shown = capsys.readouterr().out
    assert f"{expected['oIoU']:.2f}" in shown and f"{expected['mIoU']:.2f}" in shown and "by number of tokens" in shown


def test_checkpoints_are_found_by_step(place, batches, tmp_path, capsys):
    common = ("--data_dir", batches, "--set", "val", "--restore_refseg", place / "exp")
    run(*common, "--iters", 500, 5000, "--output_dir", tmp_path / "two")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"500", "5000"}
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("unc val")]) == 2
    run(*common, "--iters", 0, "--output_dir", tmp_path / "every")
    assert json.loads((tmp_path / "every" / "metrics.json").read_text())["checkpoint"]["step"] == 5000
    run(*common, "--output_dir", tmp_path / "best")
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["checkpoint"]["file"].endswith("best.pth")


def test_the_default_folder_names_what_is_not_default(place, batches):
    common = ("--data_dir", batches, "--set", "val", "--restore_refseg", place / "exp", "--iters", 500)
    run(*common)
    run(*common, "--eval_pad", "black", "--eval_antialias", "--rotate_expressions", "--threshold", "0.5")
    found = {path.parent.name for path in (place / "exp").glob("eval_*/metrics.json")}
    assert found == {"eval_unc_val_500", "eval_unc_val_500_rotated_black_antialias_threshold0.5"}


def test_the_control_reports_both_numbers(place, batches, tmp_path, capsys):
    common = ("--data_dir", batches, "--set", "val", "--checkpoint", place / "exp" / "best.pth")
    run(*common, "--output_dir", tmp_path / "plain")
    run(*common, "--output_dir", tmp_path / "rotated", "--rotate_expressions")
    plain, rotated = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "rotated"))
    assert rotated["control"] == {"rotated": 6, "oIoU_unrotated": plain["oIoU"]} and "control" not in plain
    assert rotated["oIoU"] != plain["oIoU"] and rotated["n_samples"] == plain["n_samples"]
    assert f"oIoU {plain['oIoU']:.2f} -> {rotated['oIoU']:.2f}" in capsys.readouterr().out


def test_two_processes_give_the_same_files(place, batches, tmp_path):
    common = ("--data_dir", batches, "--set", "val", "--checkpoint", place / "exp" / "best.pth")
    run(*common, "--output_dir", tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ("--num_workers", "0", "--device", "cpu", "--output_dir", tmp_path / "two", "--is_vis")
    command = [sys.executable, *map(str, (ROOT / "eval" / "evaluate.py", *common, *flags))]
    torchrun = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # what it tells each
    ranks = [
        subprocess.Popen(command, env=torchrun | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    first, second = (process.communicate(timeout=300)[0] for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0]
    assert "unc val 5000, by number of tokens" in first and second == ""  # only the first prints
    one, two = ((tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two"))
    assert one == two and len(one.splitlines()) == COUNT
    assert len(list((tmp_path / "two" / "vis").glob("*_pred.png"))) == COUNT


def test_pictures(place, batches, tmp_path):
    run(
        "--data_dir",
        batches,
        "--set",
        "val",
        "--checkpoint",
        place / "exp" / "best.pth",
        "--output_dir",
        tmp_path,
        "--is_vis",
    )
    kinds = ("_image.jpg", "_gt.png", "_soft.png", "_pred.png", ".jpg")
    assert {path.name for path in (tmp_path / "vis").iterdir()} == {
        f"unc_val_{i}{kind}" for i in range(COUNT) for kind in kinds
    }
    split = BatchSplit(batches, "val")
    for line in (tmp_path / "samples.jsonl").read_text().splitlines():
        score = SampleScore(**json.loads(line))
        truth, soft, hard = (
            np.asarray(Image.open(tmp_path / "vis" / f"{score.name}_{kind}.png")) for kind in ("gt", "soft", "pred")
        )
        assert np.array_equal(truth == 255, split.mask(score.index)) and set(np.unique(truth)) <= {0, 255}
        assert ((hard == 255) & (truth == 255)).sum() == score.intersection
        assert ((hard == 255) | (truth == 255)).sum() == score.union
        assert (soft[hard == 255] >= 127).all() and (soft[hard == 0] <= 128).all()


def test_a_sentence_never_decides_where_a_picture_goes(tmp_path):
    array = np.zeros((9, 5), bool)
    image, logits = np.zeros((9, 5, 3), np.uint8), np.full((9, 5), -1e5, np.float32)
    score = SampleScore(0, "unc_val_0", 0, 0, 3, "../../x\n\x1b[31m\u202e" + "w" * 9000, "image")
    (tmp_path / "in").mkdir()
    write_prediction(tmp_path / "in", Prediction(score, image, array, logits), 1e-9)
    assert len(list(tmp_path.rglob("*.*"))) == 5 == len(list((tmp_path / "in").iterdir()))
    with pytest.raises(InputError, match="plain file name"):
        bad = SampleScore(0, "../unc_val_0", 0, 0, 3, "x", "image")
        write_prediction(tmp_path / "in", Prediction(bad, image, array, logits), 1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "testA"], "testA"),
        (["--input-size", "64,64"], "--input-size 64,64.*takes 32,48"),
        (["--input-size", "large"], "--input-size"),
        (["--no_decoder"], "--no_decoder .it has a decoder"),
        (["--is_shared"], "--is_shared"),
        (["--v_backbone", "vit_base_patch16_384"], "--v_backbone vit_base_patch16_384"),
        (["--l_backbone", "transformer_glove"], "--l_backbone transformer_glove .it has 1 blocks of width 12"),
        (["--l_backbone", "bert"], "--l_backbone bert: choose from"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--eval_pad", "white"], "--eval_pad|--eval-pad"),
        (["--iters", "500"], "--iters"),
        (["--restore_refseg", "."], "either --restore_refseg"),
        (["--device", "toaster"], "--device toaster"),
    ],
)
def test_bad_flags(place, batches, tmp_path, capsys, arguments, says):
    common = [
        "--data_dir",
        batches,
        "--set",
        "val",
        "--checkpoint",
        place / "exp" / "best.pth",
        "--output_dir",
        tmp_path / "out",
    ]
    error = complaint(capsys, *common, *arguments)
    assert re.search(says, error), error
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_lists_what_is_there(place, batches, tmp_path, capsys):
    common = ("--data_dir", batches, "--set", "val", "--restore_refseg")
    error = complaint(capsys, *common, place / "exp", "--iters", 500, 700)
    assert "no unc_700.pth; it holds best.pth, unc_500.pth, unc_5000.pth" in error
    assert "it holds no .pth file" in complaint(capsys, *common, tmp_path, "--iters", 0)
    assert "no such folder" in complaint(capsys, *common, tmp_path / "none", "--iters", 500)
    (tmp_path / "unc_500.pth").write_bytes(b"not a checkpoint")
    assert "unc_500.pth" in complaint(capsys, *common, tmp_path, "--iters", 500)


def test_the_reference_names_files_by_folder(place, batches, tmp_path):
    folder = tmp_path / "test"
    save(folder / "test_25000.pth", 25000)
    run("--data_dir", batches, "--set", "val", "--restore_refseg", f"{folder}/", "--iters", 25000)
    assert (folder / "eval_unc_val_25000" / "metrics.json").is_file()


def test_a_checkpoint_of_other_data(place, batches, tmp_path, capsys):
    save(tmp_path / "words.pth", words=[*VOCABULARY.words[:-1], "other"])
    save(tmp_path / "other.pth", dataset="unc+")
    common = ("--data_dir", batches, "--set", "val", "--output_dir", tmp_path / "out", "--checkpoint")
    assert "the vocabulary of" in complaint(capsys, *common, tmp_path / "words.pth")
    assert "trained on unc+" in complaint(capsys, *common, tmp_path / "other.pth")
    run(*common, tmp_path / "other.pth", "--allow_other_dataset")
    wide = write_folder(tmp_path, size=(48, 48))
    error = complaint(capsys, "--data_dir", wide, "--set", "val", "--checkpoint", place / "exp" / "best.pth")
    assert "--img-size 48,48" in error and "takes 32,48" in error


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "val_label" / "3.png").unlink(), "3.png"),
        (lambda folder: (folder / "val_batch" / "unc_val_4.npz").unlink(), "unc_val_4"),
        (
            lambda folder: truncate(folder / "val_image" / "COCO_train2014_000000000002.jpg"),
            "COCO_train2014_000000000002",
        ),
    ],
    ids=["mask", "npz", "image"],
)
def test_damaged_batches(place, tmp_path, capsys, harm, says):
    folder = write_folder(tmp_path)
    harm(folder)
    checkpoint = place / "exp" / "best.pth"
    error = complaint(
        capsys, "--data_dir", folder, "--set", "val", "--checkpoint", checkpoint, "--output_dir", tmp_path / "out"
    )
    assert says in error
    assert not list((tmp_path / "out").glob("*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_from_inside_the_folder(tmp_path):
    command = [sys.executable, "evaluate.py", "--data_dir", str(tmp_path / "none"), "--checkpoint", "x.pth"]
    done = subprocess.run(command, cwd=ROOT / "eval", capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("evaluate.py: error: ") and done.stderr.count("\n") == 1
