"""build_batches.py: the reference's numbers, and the same folder whatever happens on the way."""

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import img_as_ubyte

from tests.conftest import ROOT, SHARED, needs_shared
from tests.support.builder import batches, on_canvas, start, tree, wait_for_group_to_end
from tests.support.forked import without_log
from tests.support.tiny_set import make_tiny_set
from utils.prepared import PreparedSplit


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@needs_shared
@pytest.mark.parametrize("flags", [[], ["--self_contained"]], ids=str)
def test_arrays_are_the_references(tmp_path, flags):
    """Gref of the real sample at 480."""
    reference = json.loads((SHARED / "reference/batches_Gref_mini_480.json").read_text())
    root = shutil.copytree(SHARED / "refcoco_mini", tmp_path / "set")
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    shutil.copy(SHARED / "vocabulary/vocabulary_Gref.txt", root / "data")
    seen = set()
    for split in ("train", "val"):
        script = [sys.executable, ROOT / "build_batches.py", "-d", "Gref", "-t", split, "--root", root, *flags]
        subprocess.run(script, check=True, capture_output=True)
        data = PreparedSplit(root / "data/mscoco/Gref_480_batch", split)
        for i in range(len(data)):
            expected = reference[data.name(i)]
            image, mask = data.sample(i)
            ids, sentence, name = data.text(i)
            assert ids.dtype == np.int64 and image.dtype == np.uint8 and mask.dtype == bool
            assert (ids.tolist(), sentence, name) == (expected["text"], expected["sent"], expected["im_name"])
            assert list(image.shape) == expected["im_shape"] and sha256(image) == expected["im_sha256"]
            assert list(mask.shape) == expected["mask_shape"] and sha256(mask) == expected["mask_sha256"]
            seen.add(data.name(i))
    assert seen == set(reference)


@pytest.mark.parametrize(("dataset", "split"), [("Gref", "train"), ("unc", "testA"), ("referit", "trainval")])
def test_both_forms_hold_the_same(tiny, tmp_path, build, dataset, split):
    other = shutil.copytree(tiny, tmp_path / "other")
    assert build(tiny, dataset, split)[0] == 0
    assert build(other, dataset, split, "--self_contained")[0] == 0
    compact, whole = (PreparedSplit(batches(root, dataset), split) for root in (tiny, other))
    assert len(compact) == len(whole) == 20
    for i in range(len(compact)):
        for ours, theirs in zip(compact.sample(i), whole.sample(i), strict=True):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        assert compact.text(i)[0].tolist() == whole.text(i)[0].tolist() and compact.text(i)[1:] == whole.text(i)[1:]
    assert compact.image_groups() == whole.image_groups()


def test_arrays_and_keys_of_a_plain_computation(tiny, build):
    assert build(tiny, "Gref", "train", "--self_contained")[0] == 0
    refs = tiny / "external/refer/data/refcocog"
    annotations = json.loads((refs / "instances.json").read_text())["annotations"]
    entries = [ref for ref in pickle.loads((refs / "refs(google).p").read_bytes()) if ref["split"] == "train"]
    texts = [(ref, sentence["sent"]) for ref in entries for sentence in ref["sentences"]]
    for number, (ref, text) in enumerate(texts):
        name = f"COCO_train2014_{ref['image_id']:012d}"
        image = np.asarray(Image.open(tiny / f"data/coco/images/train2014/{name}.jpg").convert("RGB"))
        left, top, _, _, right, bottom, *_ = annotations[ref["ann_id"]]["segmentation"][0]
        mask = np.zeros(image.shape[:2], np.float32)
        mask[top:bottom, left:right] = 1
        with np.load(batches(tiny) / f"train_batch/Gref_train_{number}.npz") as stored:
            assert set(stored) == {"text_batch", "im_batch", "mask_batch", "sent_batch", "im_name_batch"}
            assert np.array_equal(stored["im_batch"], img_as_ubyte(on_canvas(image)))
            assert np.array_equal(stored["mask_batch"], on_canvas(mask) > 0) and stored["mask_batch"].dtype == bool
            assert stored["sent_batch"].tolist() == [text] and stored["text_batch"].shape == (20,)
            assert stored["im_name_batch"].shape == () and stored["im_name_batch"].item() == name
    assert len(list((batches(tiny) / "train_batch").iterdir())) == len(texts) == 20


def test_canvas_that_is_no_square(tiny, build):
    code, output, _ = build(tiny, "unc", "train", "--img_size", "32,64")
    assert code == 0 and "unc_32x64_batch" in output
    data = PreparedSplit(tiny / "data/mscoco/unc_32x64_batch", "train")
    assert data.image_size == (32, 64)
    assert {data.image(i).shape for i in range(len(data))} == {(32, 64, 3)}


def test_same_folder_over_workers_and_shards(tiny, tmp_path, build):
    roots = [shutil.copytree(tiny, tmp_path / name) for name in ("workers", "shards")]
    assert build(tiny)[0] == 0 and build(roots[1], "Gref", "val")[0] == 0  # the order of splits does not matter either
    running = [start(roots[0], "--workers", "2")]
    running += [start(roots[1], "--workers", "1", "--shard", f"{i}/3") for i in (1, 2, 3)]
    for process in running:
        output, error = process.communicate(timeout=60)
        assert (process.returncode, without_log(error)) == (0, ""), output
    for root in (tiny, roots[0]):
        assert build(root, "Gref", "val")[0] == 0
    expected = tree(batches(tiny))
    assert len(expected) == 5 + 2 * (1 + 5 + 10 + 20)  # meta, vocabulary, locks; index, images, masks, expressions
    assert all(tree(batches(root)) == expected for root in roots)


def test_a_shard_alone_does_not_complete_the_split(tiny, build):
    code, output, _ = build(tiny, "Gref", "train", "--shard", "2/2")
    assert code == 0 and "not complete yet: 12 expressions" in output
    assert json.loads((batches(tiny) / "meta.json").read_text())["splits"]["train"]["complete"] is False


def test_killed_at_any_moment(tmp_path, build):
    """kill -9 of the parent when so and so many files are there: its workers end too, and the next run goes on."""
    root = make_tiny_set(tmp_path / "killed", images=24, refs=2, sentences=4)
    undisturbed = shutil.copytree(root, tmp_path / "undisturbed")
    folder, total = batches(root), 24 + 48 + 192
    kept: dict[Path, int] = {}
    interrupted = 0
    for goal in sorted(random.Random(4).sample(range(1, total - 60), 4)):
        process = start(root, "--workers", "2")
        while process.poll() is None and sum(1 for _ in folder.glob("train_*/*.*")) < goal:
            time.sleep(0.002)
        interrupted += process.poll() is None
        process.kill()
        process.communicate()
        wait_for_group_to_end(process.pid)
        if sum(1 for _ in folder.glob("train_batch/*.npz")) < 192:
            assert json.loads((folder / "meta.json").read_text())["splits"]["train"]["complete"] is False
        assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("train_*/[!.]*")}
    assert interrupted
    (folder / "train_image/.writing-999999999-abc").write_bytes(b"of a run that was killed while it wrote")
    assert build(root)[0] == 0 and build(undisturbed)[0] == 0
    assert tree(folder) == tree(batches(undisturbed))
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


@pytest.mark.parametrize("times", [1, 2, 9])
@pytest.mark.parametrize(("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_stopped_by_signals(tmp_path, send, number, times):
    """Ctrl-C goes to all processes, workers that are still starting too; a second one must not break off the end."""
    root = make_tiny_set(tmp_path / "set", images=120, refs=2, sentences=8)
    process = start(root, "--workers", "2")
    while process.poll() is None and not any(batches(root).glob("train_batch/*.npz")):
        time.sleep(0.002)
    for _ in range(times):
        send(process.pid, number)
        time.sleep(0.02)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error == "build_batches.py: error: interrupted\n", (output, error)
    wait_for_group_to_end(process.pid)
    assert not list(batches(root).rglob(".writing-*"))


def test_a_vocabulary_that_lacks_many_words_is_named(tiny, build):
    assert "not in the vocabulary" not in build(tiny)[1]
    words = tiny / "data/other.txt"
    words.write_text("\n".join((tiny / "data/vocabulary_Gref.txt").read_text().splitlines()[:5]) + "\n")
    shutil.rmtree(batches(tiny))
    output = build(tiny, "Gref", "train", "--vocabulary", str(words))[1]
    data = PreparedSplit(batches(tiny), "train")
    pieces = [word for i in range(len(data)) for word in data.text(i)[1].split()]
    share = sum(word != "the" for word in pieces) / len(pieces)  # the fifth line, after the special words
    said = f"warning: {share:.0%} of the words are not in the vocabulary: "
    assert said in output and "--vocabulary" in output.partition(said)[2], output
