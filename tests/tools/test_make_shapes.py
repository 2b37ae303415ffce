"""tools/make_shapes.py: the script, its files in RefCOCO's format, its splits."""

import hashlib
import pickletools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.shapes import IMAGES, arguments, made_shapes, make
from tools.shapes.dataset import Plan, write_dataset
from utils.errors import InputError

SMALL = {"train": 5, "val": 2, "testA": 2, "testB": 2}


@pytest.fixture(scope="module")
def made():
    return made_shapes()


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_formats_are_the_real_ones(made):
    annotations = {a["id"]: a for a in made.instances["annotations"]}
    categories = {c["id"] for c in made.instances["categories"]}
    assert len(annotations) == len(made.instances["annotations"])
    assert len(made.instances["images"]) == len(made.images) == sum(IMAGES.values())
    for entry in made.instances["images"]:
        image = made.images[entry["id"]]
        assert (image.format, image.size) == ("JPEG", (entry["width"], entry["height"]))
        assert entry["file_name"] == f"COCO_train2014_{entry['id']:012d}.jpg"
    keys = {"ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids", "sentences"}
    assert len({ref["ref_id"] for ref in made.refs}) == len(made.refs)
    sentence_ids = [s["sent_id"] for ref in made.refs for s in ref["sentences"]]
    assert len(set(sentence_ids)) == len(sentence_ids)
    for ref in made.refs:
        assert set(ref) == keys and ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
        a = annotations[ref["ann_id"]]
        assert (a["image_id"], a["category_id"]) == (ref["image_id"], ref["category_id"])
        assert a["category_id"] in categories and a["iscrowd"] == 0
        for s in ref["sentences"]:
            assert s["raw"] == s["sent"] == s["sent"].lower().strip() == " ".join(s["tokens"]) != ""


def test_pickles_are_protocol_2_of_plain_values(made):
    opcodes = list(pickletools.genops(made.refs_pickle))
    assert (opcodes[0][0].name, opcodes[0][1]) == ("PROTO", 2)
    assert max(opcode.proto for opcode, _, _ in opcodes) == 2
    assert not {"GLOBAL", "REDUCE", "BUILD", "INST"} & {opcode.name for opcode, _, _ in opcodes}


def test_every_split_exists_and_no_image_is_in_two(made):
    images = {split: {r["image_id"] for r in made.refs if r["split"] == split} for split in IMAGES}
    assert {split: len(ids) for split, ids in images.items()} == IMAGES
    assert len(set.union(*images.values())) == sum(IMAGES.values())


def test_there_is_another_ref_in_each_image_and_the_right_number_of_expressions(made):
    assert min(Counter(r["image_id"] for r in made.refs).values()) >= 2
    assert 2.4 < np.mean([len(r["sentences"]) for r in made.refs]) < 3.3


def test_grayscale_and_differently_shaped_images(made):
    modes = [image.mode for image in made.images.values()]
    assert 0 < modes.count("L") < len(modes) / 5
    sizes = [image.size for image in made.images.values()]
    assert {(width > height) - (width < height) for width, height in sizes} == {-1, 0, 1}
    assert set(map(max, sizes)) == {128}


def test_same_arguments_same_bytes(tmp_path):
    assert make(tmp_path / "a", *arguments(images=SMALL)).returncode == 0
    assert make("b", *arguments(images=SMALL), "--workers", 3, "--level", "easy", cwd=tmp_path).returncode == 0
    assert make(tmp_path / "c", *arguments(seed=5, images=SMALL)).returncode == 0
    first, second, third = (digests(tmp_path / name) for name in "abc")
    assert first == second
    assert not set(first.values()) & set(third.values())


def test_the_demo_s_scenes_stay(tmp_path):
    """The masks and expressions of version 1.0: the figures of the README belong to these."""
    write_dataset(Plan(SMALL, 64, 1), tmp_path, 1)
    found = {name: digest[:16] for name, digest in digests(tmp_path / "external/refer/data/refcoco").items()}
    assert found == {"instances.json": "815a3ccbd9c2cdb9", "refs(unc).p": "1dedcfbdfb49ad17"}


def test_generalised_shapes_are_beside_the_others(tmp_path):
    """RefCOCO's files and the images stay the same; when later shapes are without, nothing is left of gRefCOCO's."""
    write_dataset(Plan(SMALL, 64, 1), tmp_path / "plain", 1)
    write_dataset(Plan(SMALL, 64, 1, generalised=True), tmp_path / "both", 1)
    plain, both = digests(tmp_path / "plain"), digests(tmp_path / "both")
    added = {f"external/refer/data/grefcoco/{name}" for name in ("instances.json", "grefs(unc).json")}
    assert both.keys() - plain.keys() == added
    assert {name for name in plain if plain[name] != both[name]} == {"data/shapes.json"}
    write_dataset(Plan(SMALL, 64, 1), tmp_path / "both", 1, overwrite=True)
    assert digests(tmp_path / "both") == plain


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
    root, fewer = tmp_path / "shapes", arguments(images=SMALL | {"train": 3})
    assert make(root, *arguments(images=SMALL)).returncode == 0
    before = digests(root)
    refused = make(root, *fewer)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--overwrite" in refused.stderr
    assert digests(root) == before
    assert make(root, *fewer, "--overwrite").returncode == 0
    assert make(tmp_path / "fresh", *fewer).returncode == 0
    assert digests(root) == digests(tmp_path / "fresh")  # nothing of the larger set is left


@pytest.mark.parametrize(
    "place", ["external/refer/data/refcoco/refs(unc).p", "data/coco/images/train2014/COCO_train2014_000000000009.jpg"]
)
def test_real_data_is_never_touched(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("real")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=re.escape(Path(place).name)):
            write_dataset(Plan(SMALL, 128, 1), tmp_path, 1, overwrite)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / place]


WRONG = ["--images 0", "--val_images 0", "--image_size 5", "--seed -1", "--workers 0", "--level hard"]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_one_line(tmp_path, wrong):
    refused = make(tmp_path / "shapes", *wrong.split())
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and wrong.split()[0][2:] in refused.stderr
    assert not (tmp_path / "shapes").exists()


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for content in ("[1]", "{", '{"arguments": {"images": 3}}', '{"arguments": {"images": {"train": "many"}}}'):
        (tmp_path / "data/shapes.json").write_text(content)
        with pytest.raises(InputError, match=r"shapes\.json"):
            write_dataset(Plan(SMALL, 128, 1), tmp_path, 1, overwrite=True)
