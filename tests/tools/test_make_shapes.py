"""tools/make_shapes.py: the script, its files in the real formats, its splits."""

import hashlib
import pickletools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.shapes import IMAGES, REFS_FILES, SCRIPT, arguments, made_shapes, make, queries
from tools.shapes.dataset import Plan
from tools.shapes.record import claim
from utils.errors import InputError


@pytest.fixture(scope="module", params=["easy", "full"])
def made(request, tmp_path_factory):
    return made_shapes(request.param, tmp_path_factory)


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_formats_are_the_real_ones(made):
    images = {i["id"]: i for i in made.instances["images"]}
    annotations = {a["id"]: a for a in made.instances["annotations"]}
    categories = {c["id"] for c in made.instances["categories"]}
    assert len(annotations) == len(made.instances["annotations"])
    assert len(images) == sum(IMAGES.values())
    for entry in images.values():
        image = made.image(entry["id"])
        assert (image.format, image.size) == ("JPEG", (entry["width"], entry["height"]))
        assert entry["file_name"] == f"COCO_train2014_{entry['id']:012d}.jpg"
    for refs in made.refs.values():
        keys = {"ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids", "sentences"}
        assert all(set(ref) == keys for ref in refs)
        assert len({ref["ref_id"] for ref in refs}) == len(refs)
        sentence_ids = [s["sent_id"] for ref in refs for s in ref["sentences"]]
        assert len(set(sentence_ids)) == len(sentence_ids)
        for ref in refs:
            a = annotations[ref["ann_id"]]
            assert (a["image_id"], a["category_id"]) == (ref["image_id"], ref["category_id"])
            assert a["category_id"] in categories and a["iscrowd"] == 0
            assert ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
            for s in ref["sentences"]:
                assert s["sent"] == s["sent"].lower().strip() == " ".join(s["tokens"]) != ""
                assert s["raw"].lower().rstrip(".") == s["sent"]


def test_pickles_are_protocol_2_of_plain_values(made):
    for dataset, name in REFS_FILES:
        content = (made.root / f"external/refer/data/{dataset}/refs({name}).p").read_bytes()
        opcodes = list(pickletools.genops(content))
        assert (opcodes[0][0].name, opcodes[0][1]) == ("PROTO", 2)
        assert max(opcode.proto for opcode, _, _ in opcodes) == 2
        assert not {"GLOBAL", "REDUCE", "BUILD", "INST"} & {opcode.name for opcode, _, _ in opcodes}


def test_every_split_exists_and_no_image_is_in_two(made):
    splits = {
        ("refcoco", "unc"): {"train", "val", "testA", "testB"},
        ("refcoco+", "unc"): {"train", "val", "testA", "testB"},
        ("refcocog", "google"): {"train", "val"},
        ("refcocog", "umd"): {"train", "val", "test"},
    }
    for key, refs in made.refs.items():
        images = {split: {r["image_id"] for r in refs if r["split"] == split} for split in splits[key]}
        assert {r["split"] for r in refs} == splits[key]
        assert sum(map(len, images.values())) == len(set.union(*images.values())) == sum(IMAGES.values())
    unc = made.refs["refcoco", "unc"]
    assert {s: len({r["image_id"] for r in unc if r["split"] == s}) for s in IMAGES} == IMAGES
    trainval, test = (queries(made, split) for split in ("trainval", "test"))
    assert trainval and test
    assert not {k.split("_")[0] for k in trainval} & {k.split("_")[0] for k in test}


def test_there_is_another_ref_in_each_image_and_the_right_number_of_sentences(made):
    for key, refs in made.refs.items():
        assert min(Counter(r["image_id"] for r in refs).values()) >= 2, key
        mean = np.mean([len(r["sentences"]) for r in refs])
        assert 2.4 < mean < 3.3 if key[1] == "unc" else 1.5 < mean < 2.3
    long = [len(s["tokens"]) for r in made.refs["refcocog", "umd"] for s in r["sentences"]]
    short = [len(s["tokens"]) for r in made.refs["refcoco", "unc"] for s in r["sentences"]]
    assert np.mean(long) > np.mean(short) + 2


def test_grayscale_and_differently_shaped_photographs(made):
    modes = {i["id"]: made.image(i["id"]).mode for i in made.instances["images"]}
    assert 0 < list(modes.values()).count("L") < len(modes) / 5
    shapes = {(i["width"] > i["height"]) - (i["width"] < i["height"]) for i in made.instances["images"]}
    assert shapes == {-1, 0, 1}
    assert {max(i["width"], i["height"]) for i in made.instances["images"]} == {128}


SMALL = {"train": 5, "val": 2, "testA": 2, "testB": 2}
PLAN = Plan("easy", SMALL, 128, 1)


def test_same_arguments_same_bytes(tmp_path):
    small = arguments("full", images=SMALL)
    assert make(tmp_path / "a", *small, "--workers", 1).returncode == 0
    assert make("b", *small, "--workers", 3, cwd=tmp_path).returncode == 0
    assert make(tmp_path / "c", *arguments("full", seed=5, images=SMALL)).returncode == 0
    first, second, third = (digests(tmp_path / name) for name in "abc")
    assert first == second
    assert not set(first.values()) & {v for k, v in third.items() if k.endswith((".jpg", ".p", ".json"))}


def test_a_second_run_and_an_unfinished_one(tmp_path):
    small, root = arguments(images=SMALL), tmp_path / "shapes"
    assert make(root, *small).returncode == 0
    before, images = digests(root), root / "data/coco/images/train2014"
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    again = make(root, *small)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == times

    record = root / "data/shapes.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    next(images.iterdir()).unlink()
    assert make(root, *small).returncode == 0
    assert digests(root) == before


def test_other_shapes_are_replaced_only_when_told(tmp_path):
    root = tmp_path / "shapes"
    assert make(root, *arguments("full", images=SMALL)).returncode == 0
    before = digests(root)
    fewer = arguments(images=SMALL | {"train": 3})
    refused = make(root, *fewer)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--overwrite" in refused.stderr
    assert digests(root) == before
    assert make(root, *fewer, "--overwrite").returncode == 0
    assert make(tmp_path / "fresh", *fewer).returncode == 0
    assert digests(root) == digests(tmp_path / "fresh")  # nothing of the larger set is left


@pytest.mark.parametrize(
    "place",
    [
        "external/refer/data/refcocog/instances.json",
        "external/refer/data/refcoco/refs(unc).p",
        "data/coco/images/train2014/COCO_train2014_000000000009.jpg",
        "data/referit/images/25.jpg",
        "data/referit/referit_query_test.json",
    ],
)
def test_real_data_is_never_touched(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("real")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=re.escape(Path(place).name)):
            claim(PLAN, tmp_path, overwrite)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / place]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--images", "0"],
        ["--val_images", "0"],
        ["--image_size", "5"],
        ["--seed", "-1"],
        ["--workers", "0"],
        ["--level", "hard"],
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, wrong):
    refused = make(tmp_path / "shapes", *wrong)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and wrong[0][2:] in refused.stderr
    assert not (tmp_path / "shapes").exists()


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for content in ("[1]", "{", '{"arguments": {"images": 3}}', '{"arguments": {"images": {"train": "many"}}}'):
        (tmp_path / "data/shapes.json").write_text(content)
        with pytest.raises(InputError, match=r"shapes\.json"):
            claim(PLAN, tmp_path, overwrite=True)


def test_runs_without_the_preparation_libraries(tmp_path):
    """A GPU machine may lack pycocotools and scikit-image."""
    code = f"""
import runpy, sys
for name in ("pycocotools", "skimage", "torch", "tqdm"):
    sys.modules[name] = None
sys.argv = {["make_shapes.py", "--root", str(tmp_path), *map(str, arguments(images=SMALL))]}
sys.path.insert(0, "")
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data/shapes.json").exists()
