"""Several folders after --data_dir: what is left out, the order of a mix, and runs over two sets of shared images."""

import json
import pickle
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from prepare.folder import folder_path
from prepare.writer import BuildOptions, build
from tests.support.forked import filled
from tests.support.tiny_set import GREF, VOCABULARY, make_tiny_set
from tests.support.train_runs import equal, interrupted, outcome, records, refused, state, train, wait_for
from tests.train.test_processes import begin, together
from tests.train.test_sampler import steps
from train.data import Mix, StepSampler, TrainDataset
from train.folders import open_folders
from train.options import parse_options
from utils import image_index
from utils.datasets import photograph
from utils.image_index import read_index
from utils.prepared import PreparedSplit

SPLITS = {"Gref": ("train", "val"), "unc": ("train", "val", "testA")}
# The tiny set has images 0 to 9. By split: the images of Gref and of unc.
IMAGES = {"Gref": {"train": range(6), "val": (6, 7)}, "unc": {"train": range(2, 9), "val": (9,), "testA": (0,)}}


def deal(root: Path) -> None:
    """Deal the images of the tiny set to the splits of Gref and unc as IMAGES says."""
    for name, file in (("Gref", GREF / "refs(google).p"), ("unc", GREF.parent / "refcoco/refs(unc).p")):
        refs = [ref for ref in pickle.loads((root / file).read_bytes()) if ref["split"] == "train"]
        where = {image: split for split, images in IMAGES[name].items() for image in images}
        dealt = [{**ref, "split": where[ref["image_id"]]} for ref in refs if ref["image_id"] in where]
        (root / file).write_bytes(pickle.dumps(dealt, protocol=2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Prepared Gref and unc, whose splits share images: of Gref's training images 0 is in unc's testA, of unc's 6 and 7
    are in Gref's val."""
    root = make_tiny_set(tmp_path_factory.mktemp("set"), images=10)
    deal(root)
    built = {d: [build(BuildOptions(root, d, s, (48, 48), workers=1)).folder for s in SPLITS[d]] for d in SPLITS}
    return [each[0] for each in built.values()]


def opened(folders, *flags):
    return open_folders(parse_options("", ["--data_dir", *map(str, folders), *flags]).data)


def images_of(split) -> list[int]:
    return sorted({int(split.read(i).image_name[-12:]) for i in range(len(split))})


def test_images_to_evaluate_on_are_left_out(folders):
    split, valsets, vocabulary = opened(folders)
    kept = {"Gref": [1, 2, 3, 4, 5], "unc": [2, 3, 4, 5, 8]}
    assert {name: images_of(own) for name, own in split.splits.items()} == kept
    numbers = {name: (out["images"], out["expressions"]) for name, out in split.left_out.items()}
    assert numbers == {"Gref": (1, 4), "unc": (2, 8)} and len(split) == 20 + 20
    assert (list(valsets), vocabulary.words) == (["Gref", "unc"], VOCABULARY)
    assert split.not_looked_at() == ["unc testB"]
    whole, _, _ = opened(folders, "--keep_overlap")
    assert images_of(whole) == [*range(9)] and (len(whole), whole.left_out) == (24 + 28, {})
    alone, _, _ = opened(folders[1:])
    assert images_of(alone) == [*range(2, 9)] and alone.left_out == {}


def test_the_joined_set_has_the_samples_of_its_parts(folders):
    """Read through TrainDataset, against the folders read one by one without index or join."""
    split, _, _ = opened(folders)
    joined, judged = TrainDataset(split), {0, 6, 7, 9}
    own = [TrainDataset(PreparedSplit(folder, "train")) for folder in folders]
    expected = [s for d in own for s in map(d.__getitem__, range(len(d))) if not _judged(d, s["index"], judged)]
    assert len(joined) == len(expected) == 40
    for sample, plain in zip(map(joined.__getitem__, range(40)), expected, strict=True):
        assert sample["name"] == plain["name"]
        assert all(np.array_equal(sample[key], plain[key]) for key in ("image", "mask", "ids"))


def _judged(dataset, index, judged) -> bool:
    return int(dataset.split.text(index)[2][-12:]) in judged


@pytest.mark.parametrize(
    ("dataset", "name", "expected"),
    [
        ("unc", "COCO_train2014_000000581857", ("coco", 581857)),
        ("Gref_umd", "000000581857", ("coco", 581857)),
        ("referit", "30993", ("referit", "30993")),
        ("mine", "30993", ("custom", "30993")),
        ("mine", "a__COCO_val2014_000000000042", ("coco", 42)),
        ("mine", "000000581857", ("coco", 581857)),
        ("mine", "train2017__000000000042", ("coco", 42)),
        ("mine", "202611282226", ("custom", "202611282226")),
        ("unc", "nothing", ("mscoco", "nothing")),
    ],
)
def test_what_is_the_same_photograph(dataset, name, expected):
    assert photograph(dataset, name) == expected


@pytest.mark.parametrize(("lengths", "shares"), [([7, 5, 3], [2, 1, 1]), ([4, 9], [1, 5]), ([6], [3])])
def test_a_mix_keeps_its_shares_and_shows_each_set_in_turn(lengths, shares):
    mix, block = Mix(lengths, shares), sum(shares)
    owners = np.repeat(range(len(lengths)), lengths)
    stream = [mix.sample(position, seed=3) for position in range(60 * block)]
    for start in range(0, len(stream), block):
        count = Counter(int(owners[sample]) for sample in stream[start : start + block])
        assert [count[number] for number in range(len(shares))] == shares
    for number, length in enumerate(lengths):  # all of it before any of it again
        own = [sample for sample in stream if owners[sample] == number]
        epochs = [sorted(own[i : i + length]) for i in range(0, len(own) - length + 1, length)]
        assert epochs == [[*np.flatnonzero(owners == number)]] * len(epochs) and len(epochs) > 5
    assert stream != [mix.sample(position, seed=4) for position in range(60 * block)]
    places = {tuple(owners[stream[i : i + block]].tolist()) for i in range(0, len(stream), block)}
    assert len(places) > 1 or len(shares) == 1  # which set serves a place is drawn too


def test_the_order_of_a_mix_depends_on_seed_and_step_alone():
    mix = Mix([7, 5, 3], [2, 1, 1])
    whole = steps(StepSampler(15, 8, 1, 0, 12, mix=mix))
    assert whole[5:] == steps(StepSampler(15, 8, 1, 5, 12, mix=mix))
    for ranks, accum in ((2, 1), (2, 2), (4, 2)):
        parts = [steps(StepSampler(15, 8, 1, 0, 12, rank, ranks, accum, mix)) for rank in range(ranks)]
        assert [sum(step, []) for step in zip(*parts, strict=True)] == whole


FIRST = [[8, 1, 4, 2], [9, 7, 0, 6], [3, 5, 5, 8]]  # of version 1.0


def test_the_order_of_one_set_is_that_of_version_1():
    assert list(StepSampler(10, 4, 1, 0, 3)) == FIRST


def test_the_index_of_images_is_written_once(folders, tmp_path, monkeypatch):
    """A folder of 1.0 gets the file that a build writes; damaged or of other expressions, it is made again."""
    copied = tmp_path / "copied"
    shutil.copytree(folders[0], copied)
    file = copied / "train_images.npz"
    built = file.read_bytes()
    groups: dict[str, list[int]] = {}
    split = PreparedSplit(copied, "train")
    for i in range(len(split)):
        groups.setdefault(split.text(i)[2], []).append(i)
    damaged = bytearray(built)
    damaged[built.index(b"NUMPY") + 200] ^= 1
    other = (folders[1] / "train_images.npz").read_bytes()
    for content in (None, b"", bytes(damaged), built[:-30], other, built):
        file.unlink() if content is None else file.write_bytes(content)
        assert PreparedSplit(copied, "train").image_groups() == list(groups.values())
        assert file.read_bytes() == built
    part = split.select([9, 2, 23, 3])
    names = [part.text(i)[2] for i in range(4)]
    assert part.image_groups() == [[i for i in range(4) if names[i] == name] for name in dict.fromkeys(names)]
    np.savez(file, names=np.array(["a", "b"]), numbers=np.zeros(24, np.int32), texts_sha256="")  # b has no expression
    assert read_index(file, 24, "") is None
    file.unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_index, "atomic_write", full)
    assert PreparedSplit(copied, "train").image_groups() == list(groups.values()) and not file.exists()


MIX = ("--mix", "2", "1")


def both(folders, *flags):
    return ("--data_dir", *map(str, folders), *flags)


@pytest.fixture(scope="module")
def mixed(folders, tmp_path_factory):
    """An undisturbed run over both folders."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    assert train(folders[0], folder, *both(folders, *MIX))[0] == 0
    return folder


def test_a_run_over_two_folders(mixed, folders):
    names = {path.name for path in mixed.iterdir()}
    assert {"last.pth", "best.pth", "mixed_4.pth", "mixed_12.pth"} <= names
    scores = [line for line in records(mixed) if line["kind"] == "val"]
    assert [line["oIoU"] for line in scores] == [(line["Gref oIoU"] + line["unc oIoU"]) / 2 for line in scores]
    best = state(mixed, "best.pth")
    assert best["metrics"]["oIoU"] == max(line["oIoU"] for line in scores)
    assert best["data"]["dataset"] == "Gref, unc" and set(best["data"]["splits"]) == {
        f"{name} {split}" for name in ("Gref", "unc") for split in ("train", "val")
    }
    said, config = Path(f"{mixed}.out").read_text(), json.loads((mixed / "config.json").read_text())
    facts = (
        "share 2, train 20 of 24 expressions, val 8, left out for 1 image",
        "share 1, train 20 of 28",
        "together 40 ",
    )
    assert [fact for fact in facts if fact not in said] == []
    assert "not looked at: the images of unc testB" in said and said.count("evaluate.py --data_dir") == 2
    assert {name: out["expressions"] for name, out in config["left_out"].items()} == {"Gref": 4, "unc": 8}
    assert config["flags"]["data_dir"] == [str(folder) for folder in folders]


def test_a_stopped_run_over_two_folders_ends_with_the_same_bits(mixed, folders, tmp_path):
    folder = tmp_path / "run" / "mixed"
    folder.parent.mkdir()
    assert interrupted(folders[0], folder, signal.SIGTERM, *both(folders, *MIX)) == 75
    assert 0 < state(folder)["step"] < 12
    resumed = both(folders, *MIX, "--resume")
    assert train(folders[0], folder, *resumed)[0] == 0
    assert equal(outcome(folder), outcome(mixed))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("A --mix 1", "--mix [2, 1], not [1]"),
        ("B A --mix 2 1", "other data (dataset)"),
        ("A B --mix 2 1 --keep_overlap", "other data (left_out)"),
        ("A B --mix 1 1", "--mix [2, 1], not [1, 1]"),
    ],
)
def test_a_run_goes_on_with_its_folders_only(mixed, folders, flags, words):
    given = [str({"A": folders[0], "B": folders[1]}.get(word, word)) for word in flags.split()]
    assert words in refused(folders[0], mixed, "--data_dir", *given, "--resume")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("A A", "is listed twice"),
        ("A B LINK", "is listed twice"),
        ("A B --mix 2 1 1", "give one number for each folder, which are 2"),
        ("A B --mix 2 0", "argument --mix: 0: must be from 1"),
        ("A WORDS", "has another vocabulary (12 words) than"),
        ("A SIZE", "was built at another size than"),
        ("A ALL", "each image of train is also in an evaluation split"),
    ],
)
def test_folders_that_do_not_go_together(folders, others, tmp_path, flags, words):
    (tmp_path / "link").symlink_to(folders[1])
    places = {"A": folders[0], "B": folders[1], "LINK": tmp_path / "link", **others}
    given = [str(places.get(word, word)) for word in flags.split()]
    assert words in refused(folders[0], tmp_path / "run", "--data_dir", *given)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """Folders that do not go with the first: of other words, of another size, and of images to evaluate on alone."""
    roots = [make_tiny_set(tmp_path_factory.mktemp("others") / name, images=2) for name in "ab"]
    longer = roots[0] / "words.txt"
    longer.write_text("".join(f"{word}\n" for word in [*VOCABULARY, "zebra"]))
    how = {"WORDS": (roots[0], 48, longer), "SIZE": (roots[1], 32, None), "ALL": (roots[1], 48, None)}
    for root, side, words in how.values():
        for split in ("train", "val"):
            build(BuildOptions(root, "Gref", split, (side, side), workers=1, vocabulary=words))
    return {name: folder_path(root, "Gref", (side, side)) for name, (root, side, _) in how.items()}


@pytest.mark.slow
def test_two_processes_stopped_in_a_mix_end_with_the_same_bits(folders, tmp_path):
    whole, stopped = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for folder in (whole, stopped):
        folder.parent.mkdir()
    code, message = together(folders[0], whole, *both(folders, *MIX))
    assert code == 0, message
    process = begin(folders[0], stopped, *both(folders, *MIX))
    wait_for(lambda: filled(stopped / "log.jsonl"))
    process.send_signal(signal.SIGTERM)
    process.wait(100)
    assert 0 < state(stopped)["step"] < 12
    code, message = together(folders[0], stopped, *both(folders, *MIX, "--resume"))
    assert code == 0, message
    assert equal(outcome(stopped), outcome(whole))
