"""`check_data.py --overlap`, against the images that the tiny set was dealt."""

import sys

import pytest

from tests.support.tiny_set import make_tiny_set
from tests.train.test_folders import IMAGES, deal
from tools import check_data
from utils.cli import run_main


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run the script on annotations alone; returns its exit code and what it printed."""
    root = make_tiny_set(tmp_path, images=10)
    deal(root)
    for image in (root / "data/coco/images/train2014").iterdir():
        image.unlink()

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["check_data.py", "--root", str(root), "--overlap", *flags])
        with pytest.raises(SystemExit) as left:
            run_main(check_data.main)
        printed = capsys.readouterr()
        return left.value.code, printed.out + printed.err

    return run


def test_the_matrix_of_shared_images(check):
    code, output = check()
    title, head, *lines = output.splitlines()
    assert code == 0 and head.split() == ["images", "unc", "train", "Gref", "train", "referit", "trainval"]
    sets = {f"{name} {split}": set(images) for name, splits in IMAGES.items() for split, images in splits.items()}
    expected = {
        name: [len(own), len(own & sets["unc train"]), len(own & sets["Gref train"]), 0] for name, own in sets.items()
    }
    expected |= {f"referit {split}": [10, 0, 0, 10] for split in ("trainval", "test")}  # other photographs
    cells = [line.split() for line in lines]
    assert {" ".join(words[:2]): [*map(int, words[2:])] for words in cells} == expected
    assert (expected["Gref val"], expected["unc testA"]) == ([2, 2, 0, 0], [1, 0, 1, 0])


def test_what_the_matrix_cannot_be_made_of(check):
    code, output = check("-d", "Gref", "unc+")
    assert code == 1 and "FAULT" in output and "refcoco+/refs(unc).p: no such file" in output and "Gref val" in output
    code, output = check("-d", "mine", "--refs", "x.jsonl")
    assert code == 2 and output.count("\n") == 1 and "leave --refs out" in output
