"""Expressions for several objects or none: gRefCOCO's layout, and the same in your own data."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from prepare.own_data import OwnData
from prepare.public import read_expressions, read_refs
from tests.support.builder import batches, refusal
from tests.support.hostile import refused
from utils.prepared import PreparedSplit, read_meta

SIZE = (10, 12)
BOXES = {70: (1, 1, 5, 4), 71: (3, 2, 9, 9), 72: (8, 0, 12, 3)}  # left, top, right, bottom
FLAT = [[1, 1, 5, 1, 3, 1]]  # three points on a line


def box(*ids: int) -> np.ndarray:
    """The union of the annotations' boxes, drawn by slices."""
    mask = np.zeros(SIZE, bool)
    for left, top, right, bottom in map(BOXES.get, ids):
        mask[top:bottom, left:right] = True
    return mask


def polygon(number: int) -> list:
    left, top, right, bottom = BOXES[number]
    return [[left, top, right, top, right, bottom, left, bottom]]


def ref(number: int, ann_id, image: int = 1, split: str = "train", **more) -> dict:
    entry = {"ref_id": number, "ann_id": ann_id, "image_id": image, "split": split}
    return {**entry, "sentences": [{"sent": "left"}], **more}


RUNS = coco.encode(np.asfortranarray(box(71).astype(np.uint8)))
PACKED = {**RUNS, "counts": RUNS["counts"].decode()}
INSTANCES = {
    "images": [{"id": 1, "height": 10, "width": 12}, {"id": 2, "height": 10, "width": 12}],
    "annotations": [
        {"id": 70, "image_id": 1, "segmentation": polygon(70)},
        {"id": 71, "image_id": 1, "segmentation": PACKED},
        {"id": 72, "image_id": 1, "segmentation": polygon(72)},
        {"id": 80, "image_id": 2, "segmentation": FLAT},
    ],
}
REFS = [
    ref(0, [70], no_target=False, category_id=[1]),
    ref(1, [70, 71, 72], no_target=False),
    ref(2, [-1]),
    ref(3, [-1], no_target=True),
    ref(4, [], no_target=1),
    ref(5, None, no_target=True),
    ref(6, ["72", 70.0, 72]),
    ref(7, 71),
    ref(8, [70, 72], split="val"),
]
MEANT = [(70,), (70, 71, 72), (), (), (), (), (72, 70), (71,)]


def save(root, refs=REFS, instances=INSTANCES):
    folder = root / "external/refer/data/grefcoco"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    (folder / "instances.json").write_text(json.dumps(instances))
    return root


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data/coco/images/train2014"
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", SIZE[::-1], (90 * number, 0, 0)).save(folder / f"COCO_train2014_{number:012d}.jpg")
    (tmp_path / "data/vocabulary_Gref.txt").write_text("<pad>\n<go>\n<eos>\n<unk>\nleft\n")
    return save(tmp_path)


def test_masks_are_unions_and_those_of_no_object_are_empty(root):
    refs = read_refs(root, "grefcoco", "train")
    assert [ref.no_target for ref in refs] == [not ids for ids in MEANT]
    for found, ids in zip(refs, MEANT, strict=True):
        mask = found.mask()
        assert mask.dtype == bool and np.array_equal(mask, box(*ids)), ids
        assert found.image_name == "COCO_train2014_000000000001" and pickle.loads(pickle.dumps(found)) == found
    assert read_expressions(root, "grefcoco", "val") == ["left"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ref(3, [70, 73]), "ref 3 of grefs(unc).json: annotation 73 is not there"),
        (ref(3, [70, 80]), "ref 3 of grefs(unc).json: annotation 80 is of image 2, the ref of 1"),
        (ref(3, [-1, 70]), "ref 3: ann_id is neither [-1] (no object) nor a list of whole numbers"),
        (ref(3, [-1, -1]), "ref 3: ann_id is neither [-1]"),
        (ref(3, []), "ref 3: ann_id is neither [-1]"),
        (ref(3, [[70]]), "ref 3: ann_id is neither [-1]"),
        (ref(3, [True]), "ref 3: ann_id is neither [-1]"),
        (ref(3, [2**60]), "ref 3: ann_id is neither [-1]"),
        (ref(3, [70] * 1001), "ref 3: ann_id is neither [-1]"),
        (ref(3, [70], no_target=True), "ref 3: has no_target, but also an annotation as ann_id"),
        (ref(3, 70, no_target=True), "ref 3: has no_target, but also an annotation as ann_id"),
        (ref(3, [70], no_target="no"), "ref 3: no_target is neither true nor false"),
        (ref(3, -1), "ref number 0: has no whole number as ann_id"),
        (ref(3, [-1], image=9), "ref 3 of grefs(unc).json: image 9 is not there"),
        (ref(3, [80], image=2), "ref 3 of grefs(unc).json: a polygon has 4 numbers"),
    ],
)
def test_bad_entries_are_one_line_of_the_script(root, build, entry, said):
    instances = json.loads(json.dumps(INSTANCES))
    instances["annotations"][3]["segmentation"] = [[1, 1, 5, 1]]
    error = refusal(build, save(root, [entry], instances), "grefcoco", "train")
    assert said in error and "grefs(unc).json" in error
    assert not batches(root, "grefcoco").exists()


def test_no_union_takes_long_to_draw(root):
    """Each outline alone is allowed; all of them together are not."""
    instances = json.loads(json.dumps(INSTANCES))
    zigzag = [[x for i in range(2_000) for x in (12 * (i % 2), 10 * (i % 2))] for _ in range(45)]
    annotations = [{"id": number, "segmentation": zigzag} for number in range(100, 103)]
    instances["annotations"] = annotations
    assert read_refs(save(root, [ref(1, [100])], instances), "grefcoco", "train")
    message = refused(read_refs, save(root, [ref(1, [100, 101, 102])], instances), "grefcoco", "train")
    assert "ref 1" in message and "outlines are too long" in message


@pytest.mark.parametrize("form", [[], ["--self_contained"]], ids=["files", "npz"])
def test_declared_ones_are_built_in_silence_and_other_empty_masks_still_warn(root, build, form):
    code, output, error = build(root, "grefcoco", "train", *form)
    assert (code, error) == (0, "") and "warning" not in output
    split = PreparedSplit(batches(root, "grefcoco"), "train")
    assert split.is_generalised and split.meta["splits"]["train"]["no_target"] == 4
    assert [split.mask(i).any() for i in range(len(split))] == [bool(ids) for ids in MEANT]
    code, output, _ = build(root, "grefcoco", "val", *form)
    assert code == 0 and "no_target" not in read_meta(batches(root, "grefcoco"))["splits"]["val"]
    assert not PreparedSplit(batches(root, "grefcoco"), "val").is_generalised
    shutil.rmtree(batches(root, "grefcoco"))
    code, output, _ = build(save(root, [ref(9, [80], image=2), *REFS]), "grefcoco", "train", *form)
    assert code == 0 and "warning: 1 refs have a mask without any pixel, such as grefcoco_train_0\n" in output
    assert PreparedSplit(batches(root, "grefcoco"), "train").meta["splits"]["train"]["no_target"] == 4


def test_the_same_form_in_your_own_data_and_coco_s_two_folders_of_images(root, tmp_path):
    """A pickle, and images of train2014 and val2014 that lie as COCO's zips unpack."""
    names = ["COCO_train2014_000000000001.jpg", "COCO_val2014_000000000002.jpg"]
    folder = root / "data/coco/images"
    (folder / "val2014").mkdir()
    (folder / "train2014/COCO_train2014_000000000002.jpg").rename(folder / "val2014" / names[1])
    instances = json.loads(json.dumps(INSTANCES))
    for image, name in zip(instances["images"], names, strict=True):
        image["file_name"] = name
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "refs(final).p").write_bytes(pickle.dumps([*REFS, ref(9, [-1], image=2)], 2))
    own = OwnData("zom", tmp_path / "refs(final).p", tmp_path / "instances.json", folder)
    refs = own.read_refs("train")
    assert all(np.array_equal(found.mask(), box(*ids)) for found, ids in zip(refs, [*MEANT, ()], strict=True))
    assert refs[-1].image_path == folder / "val2014" / names[1] and refs[-1].no_target


LINES = [
    {"image": "1.jpg", "mask": None, "no_target": True, "text": "zebra", "split": "train"},
    {"image": "1.jpg", "polygon": polygon(70) + polygon(72), "no_target": False, "text": "both", "split": "train"},
]


@pytest.fixture
def own(root, tmp_path):
    """own(lines): a JSON Lines file of the user's own beside an image."""
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "1.jpg")

    def write(lines):
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return OwnData("own", tmp_path / "own.jsonl", None, None)

    return write


def test_lines_of_no_object_and_of_several(own, build, tmp_path):
    none, both = own(LINES).read_refs("train")
    assert none.no_target and not none.mask().any() and none.mask().shape == SIZE
    assert not both.no_target and np.array_equal(both.mask(), box(70, 72))
    words = ["--refs", str(tmp_path / "own.jsonl"), "--vocabulary", str(tmp_path / "data/vocabulary_Gref.txt")]
    code, output, _ = build(tmp_path, "own", "train", *words)
    assert code == 0 and "without any pixel" not in output
    assert PreparedSplit(tmp_path / "data/custom/own_48_batch", "train").meta["splits"]["train"]["no_target"] == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mask": "m.png"}, 'line 1: has "no_target" and a mask; keep one of the two'),
        ({"polygon": polygon(70)}, 'line 1: has "no_target" and a polygon'),
        ({"no_target": "yes"}, 'line 1: "no_target" is neither true nor false'),
        ({"no_target": [1]}, 'line 1: "no_target" is neither true nor false'),
        ({"no_target": False}, 'and has 0 (of no object: "no_target": true)'),
        ({"image": "2.jpg"}, "2.jpg: no such file"),
    ],
)
def test_bad_lines_of_no_object(own, changed, said):
    assert said in refused(own([{**LINES[0], **changed}]).read_refs, "train")
