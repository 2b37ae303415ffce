"""Reading batch folders: whole, half-built, damaged, hostile, and those that the reference made."""

import json
import shutil

import numpy as np
import pytest
import torch
from skimage import img_as_ubyte
from torch.utils.data import DataLoader

from eval.evaluator import ImageGroups
from prepare.writer import BuildOptions, build
from tests.support.builder import on_canvas
from tests.support.hostile import refused
from tests.support.tiny_set import VOCABULARY, make_tiny_set
from train.data import TrainDataset, collate
from utils.errors import InputError
from utils.files.images import read_image
from utils.prepared import META, PreparedSplit, read_meta

FORMS = {"compact": False, "whole": True}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """{form: folder of Gref, train and val}, of one tiny set."""
    folders = {}
    for form, self_contained in FORMS.items():
        root = make_tiny_set(tmp_path_factory.mktemp(form))
        for split in ("train", "val"):
            summary = build(BuildOptions(root, "Gref", split, (48, 48), 1, self_contained=self_contained))
        folders[form] = summary.folder
    return folders


@pytest.fixture
def copy(built, tmp_path):
    """copy(form): a folder to be damaged."""
    return lambda form: shutil.copytree(built[form], tmp_path / "Gref_48_batch")


@pytest.fixture
def folder(copy):
    return copy("compact")


def change_meta(folder, change) -> None:
    """`change` of meta.json's dict, made in place."""
    meta = json.loads((folder / META).read_text())
    change(meta)
    (folder / META).write_text(json.dumps(meta))


def rewrite(path, **arrays):
    with np.load(path) as old:
        np.savez(path, **{**old, **arrays})


def without_sums(folder):
    """The folder as version 1.0 wrote it."""
    for path in folder.glob("*_batch/*.npz"):
        with np.load(path) as old:
            np.savez(path, **{key: old[key] for key in old if key != "crc32"})
    change_meta(folder, lambda meta: meta.pop("bytes"))


def test_a_folder_of_version_1_0_without_sums_is_read(built, folder):
    without_sums(folder)
    old, new = (PreparedSplit(each, "train") for each in (folder, built["compact"]))
    for i in range(len(new)):
        assert all(np.array_equal(a, b) for a, b in zip(old.sample(i), new.sample(i), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["train", "val"])  # masks are PNGs, photographs of val the JPEGs
def test_no_flipped_bit_goes_unnoticed(copy, form, split):
    """In what training and evaluation read; of an npz at least nothing that is read is another."""
    folder, random = copy(form), np.random.default_rng(5)
    expected = TrainDataset(PreparedSplit(folder, split))[0]
    npz = folder / f"{split}_batch/Gref_{split}_0.npz"
    paths = [npz]
    if form == "compact":
        with np.load(npz) as stored:
            paths += [folder / f"{split}_{kind}" / stored[f"{kind}_file"].item() for kind in ("image", "label")]
    for path in paths:
        content = path.read_bytes()
        for bit in random.choice(8 * len(content), 100, replace=False).tolist():
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            data = PreparedSplit(folder, split)
            sample, group = TrainDataset(data)[0], ImageGroups(data, [[0]])[0]
            if path == npz and not isinstance(sample, InputError):
                assert all(torch.equal(sample[key], expected[key]) for key in ("image", "mask", "ids"))
                continue
            for error in (sample, group):
                assert isinstance(error, InputError), bit
                assert f"{path}: " in str(error) and "delete it and run build_batches.py again" in str(error)
        path.write_bytes(content)


def test_what_a_split_says(built):
    data = PreparedSplit(str(built["compact"]), "val")
    assert (len(data), data.dataset, data.split, data.image_size) == (20, "Gref", "val", (48, 48))
    assert data.meta == read_meta(built["compact"]) and data.meta["vocabulary"]["size"] == len(VOCABULARY)
    assert data.name(17) == "Gref_val_17"
    ids, sentence, name = data.text(2)  # first expression of the second ref of the split, the 12th of all
    assert sentence == "red shirt" and name == "COCO_train2014_000000000001"
    assert ids.tolist() == [0] * 18 + [8, 9]
    assert data.text(3)[0].tolist() == [0] * 17 + [9, 3, 4]  # "zebra" is not in the vocabulary
    with pytest.raises(IndexError):
        data.text(20)


def test_pictures_of_an_evaluation_split_are_the_originals(built):
    data = PreparedSplit(built["compact"], "val")
    root = built["compact"].parents[2]
    for i in range(len(data)):
        original = root / f"data/coco/images/train2014/{data.text(i)[2]}.jpg"
        image, mask = data.image(i), data.mask(i)
        assert (data.folder / "val_image" / original.name).read_bytes() == original.read_bytes()
        assert np.array_equal(image, read_image(original)) and mask.shape == image.shape[:2]
        assert mask.sum() == (mask.shape[0] // 3) * (mask.shape[1] // 3)  # as tiny_set draws them
        assert set(np.unique(mask.view(np.uint8))) == {0, 1}


def test_pictures_of_a_training_split_are_centred_on_black(built):
    data = PreparedSplit(built["compact"], "train")
    image, mask = data.sample(0)  # 60 x 80 -> 36 x 48
    assert image.shape == (48, 48, 3) and mask.shape == (48, 48)
    assert not image[:6].any() and not image[42:].any() and image[6:42].any(axis=(1, 2)).all()
    assert not mask[:6].any() and not mask[42:].any() and mask.any()
    assert np.array_equal(image, data.image(0)) and np.array_equal(mask, data.mask(0))


@pytest.mark.parametrize("form", FORMS)
def test_groups_are_the_expressions_of_an_image(built, form):
    """tiny_set interleaves: ref r of image k is the (5 r + k)-th, with two expressions."""
    data = PreparedSplit(built[form], "val")
    expected = [[2 * k, 2 * k + 1, 10 + 2 * k, 11 + 2 * k] for k in range(5)]
    assert data.image_groups() == expected
    for a, b, c, d in expected:
        assert data.ref(a) == data.ref(b) != data.ref(c) == data.ref(d)


def test_training_samples(built):
    data = PreparedSplit(built["compact"], "train")
    samples = TrainDataset(data)
    sample = samples[3]
    assert (len(samples), sample["name"], sample["index"]) == (20, "Gref_train_3", 3)
    assert [sample[key].dtype for key in ("image", "mask", "ids")] == [torch.uint8, torch.bool, torch.int64]
    assert sample["image"].is_contiguous() and sample["ids"].tolist() == data.text(3)[0].tolist()
    assert np.array_equal(sample["image"].numpy(), data.image(3).transpose(2, 0, 1))
    assert np.array_equal(sample["mask"].numpy(), data.mask(3)[None])


def test_training_stream_is_the_same_of_both_forms(built):
    streams = []
    for form in FORMS:
        samples = TrainDataset(PreparedSplit(built[form], "train"))
        streams.append(list(DataLoader(samples, batch_size=8, collate_fn=collate, num_workers=form == "whole")))
    assert [len(batch["name"]) for batch in streams[0]] == [8, 8, 4]
    for ours, theirs in zip(*streams, strict=True):
        assert ours["name"] == theirs["name"]
        assert all(torch.equal(ours[key], theirs[key]) for key in ("image", "mask", "ids", "index"))


@pytest.mark.parametrize("form", [*FORMS, "the authors'"])
def test_a_split_of_any_name_can_be_trained_on(built, copy, form):
    folder = built.get(form)
    if folder is None:
        folder = copy("whole")
        (folder / META).unlink()
    data = PreparedSplit(folder, "val")
    loader = DataLoader(TrainDataset(data, (48, 48)), batch_size=20, collate_fn=collate)
    batch = next(iter(loader))
    assert len({data.image(i).shape for i in range(20)}) > 1, "the test needs images of several sizes"
    for i in range(20):
        image, mask = data.sample(i)
        assert np.array_equal(batch["image"][i].permute(1, 2, 0).numpy(), img_as_ubyte(on_canvas(image)))
        assert np.array_equal(batch["mask"][i, 0].numpy(), on_canvas(mask.astype(np.float32)) > 0)


def test_damaged_sample_reaches_the_trainer_as_one_line(folder):
    path = folder / "train_image/COCO_train2014_000000000002.png"
    path.write_bytes(path.read_bytes()[:-100])
    samples = TrainDataset(PreparedSplit(folder, "train"))
    assert path.name in str(samples[4]) and isinstance(samples[4], InputError)
    batches = list(DataLoader(samples, batch_size=2, collate_fn=collate, num_workers=1))
    assert torch.is_tensor(batches[0]["image"])
    assert isinstance(batches[2], InputError) and path.name in str(batches[2])


def test_folder_of_the_reference(built, copy, tmp_path):
    """Without meta.json, the pictures in the npz files, and the image name's array of one element."""
    source = PreparedSplit(built["whole"], "train")
    folder = copy("whole").rename(tmp_path / "somewhere")
    (folder / META).unlink()
    shutil.rmtree(folder / "val_batch")
    for path in (folder / "train_batch").iterdir():
        rewrite(path, im_name_batch=np.array([f"image{path.stem[-1]}"]))
    data = PreparedSplit(folder, "train")
    assert (data.meta, data.dataset, len(data), data.image_size) == (None, "Gref", 20, (48, 48))
    assert data.text(3)[2] == "image3" and data.name(3) == "Gref_train_3"
    assert all(np.array_equal(a, b) for i in range(20) for a, b in zip(data.sample(i), source.sample(i), strict=True))
    (folder / "train_batch/Gref_train_7.npz").unlink()
    assert "without a gap" in refused(PreparedSplit, folder, "train")
    assert "val_batch" in refused(PreparedSplit, folder, "val")


def test_half_built_split_is_refused_with_the_command(folder):
    change_meta(folder, lambda meta: meta["splits"]["train"].update(complete=False))
    message = refused(PreparedSplit, folder, "train")
    assert "half built" in message and "build_batches.py -d Gref -t train --img-size 48" in message
    change_meta(folder, lambda meta: meta["splits"].pop("train"))
    message = refused(PreparedSplit, folder, "train")
    assert "has not been built (whole: val)" in message and "-t train" in message
    assert "build_batches.py" in refused(PreparedSplit, folder / "nowhere", "train")
    assert "../train" in refused(PreparedSplit, folder, "../train")
    message = refused(PreparedSplit, folder, "test")  # evaluate.py's default, which no command would build
    assert "Gref has no split test, only train, val" in message and "build_batches" not in message


@pytest.mark.parametrize(("form", "split"), [("compact", "train"), ("whole", "val")])
@pytest.mark.parametrize("count", [10, 19, 21])
def test_another_number_of_expressions_than_meta_has(copy, form, split, count):
    folder = copy(form)
    change_meta(folder, lambda meta: meta["splits"][split].update(expressions=count))
    message = refused(PreparedSplit, folder, split)
    assert f"Gref_{split}_{min(count, 20)}.npz: is {'there' if count < 20 else 'not there'}" in message
    remedy = "move the folder away" if count < 20 else f"-t {split} --img-size 48"
    assert f"counts {count} expressions" in message and remedy in message


@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_another_canvas(copy, form):
    folder = copy(form)
    change_meta(folder, lambda meta: meta.update(image_size=[64, 64]))
    assert "which meta.json does not allow" in refused(PreparedSplit(folder, "train").sample, 0)
    assert PreparedSplit(folder, "val").sample(0)[0].shape == (60, 80, 3)


COUNTS = {"refs": 1, "expressions": 20, "images": 1, "complete": True}
WORDS = {"file": "vocabulary.txt", "size": 4, "sha256": "", "source": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "zip"}, {"version": 2}, {"dataset": "../x"}, {"dataset": []}, {"image_size": [48]},
        {"image_size": [48, -1]}, {"image_size": [48, 10**9]}, {"text_length": 21}, {"self_contained": 1},
        {"vocabulary": WORDS | {"file": "../../passwd"}}, {"vocabulary": WORDS | {"size": True}},
        {"vocabulary": WORDS | {"source": None}}, {"vocabulary": None}, {"bytes": 1}, {"splits": []},
        {"splits": {"train": COUNTS | {"expressions": "20"}}}, {"splits": {"train": COUNTS | {"complete": 1}}},
        {"splits": {"train\n": 1}}, {"splits": {"train": COUNTS, "a\x1b[2Jb": COUNTS}},
    ],
)  # fmt: skip
def test_meta_that_cannot_be(folder, change):
    change_meta(folder, lambda meta: meta.update(change))
    assert "meta.json: " in refused(PreparedSplit, folder, "train")


@pytest.mark.parametrize(
    "change",
    [
        {"image_file": "../train_image/COCO_train2014_000000000000.png"}, {"image_file": "/etc/hostname"},
        {"label_file": "nothing.png"}, {"label_file": "5.png\n"}, {"label_file": np.array(["0.png", "1.png"])},
        {"text_batch": np.full(20, len(VOCABULARY))}, {"text_batch": np.full(20, -1)}, {"text_batch": np.zeros(20)},
        {"text_batch": np.zeros(21, np.int64)}, {"sent_batch": np.zeros(1)}, {"sent_batch": np.array([{}], object)},
        {"im_name_batch": "a/b"}, {"crc32": np.zeros(3, np.uint32)},
    ],
)  # fmt: skip
def test_npz_that_cannot_be(folder, change):
    rewrite(folder / "train_batch/Gref_train_0.npz", **change)
    assert isinstance(TrainDataset(PreparedSplit(folder, "train"))[0], InputError)


def test_pictures_that_do_not_fit(folder):
    without_sums(folder)
    shutil.copy(folder / "train_label/1.png", folder / "train_label/0.png")  # of another image
    assert "36 x 48 but the mask 48 x 36" in refused(PreparedSplit(folder, "train").sample, 0)
    name = "COCO_train2014_000000000000"  # now those of the evaluation split, larger than the canvas
    shutil.copy(folder / f"val_image/{name}.jpg", folder / f"train_image/{name}.png")
    shutil.copy(folder / "val_label/10.png", folder / "train_label/0.png")
    assert "60 x 80" in refused(PreparedSplit(folder, "train").sample, 0)


def test_file_that_is_gone_or_cut(folder):
    data = PreparedSplit(folder, "val")
    path = folder / "val_batch/Gref_val_3.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert path.name in refused(data.text, 3)
    path.unlink()
    assert path.name in refused(data.image, 3)
    (folder / "val_label/10.png").unlink()
    assert "10.png" in refused(data.mask, 0)


def test_opening_a_split_reads_no_samples(folder):
    """Start-up does not grow with the number of expressions."""
    for path in (folder / "train_batch").iterdir():
        path.write_bytes(b"")
    assert len(TrainDataset(PreparedSplit(folder, "train"))) == 20
