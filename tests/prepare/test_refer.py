"""Annotation files to refs: the real sample, hand-made sets of every family, and what is wrong with a broken one."""

import copy
import json
import pickle

import numpy as np
import pytest
import scipy.io
from PIL import Image

from prepare.public import read_expressions, read_refs
from tests.conftest import SHARED, needs_shared
from tests.support.hostile import refused
from utils.datasets import DATASETS

SAMPLE = SHARED / "refcoco_mini"
SQUARE = [[2, 3, 6, 3, 6, 8, 2, 8]]
REFS = [
    {"ref_id": 7, "ann_id": 70, "image_id": 1, "split": "train", "sentences": [{"sent": "left"}, {"sent": ""}]},
    {"ref_id": 5, "ann_id": 50, "image_id": 2, "split": "val", "sentences": [{"sent": "man"}]},
    {"ref_id": 9, "ann_id": 90, "image_id": 2, "split": "train", "sentences": []},
]
INSTANCES = {
    "images": [{"id": 1, "height": 10, "width": 12}, {"id": 2, "height": 4, "width": 5, "file_name": "two.jpg"}],
    "annotations": [
        {"id": 70, "segmentation": SQUARE},
        {"id": 50, "segmentation": SQUARE},
        {"id": 90, "segmentation": {"size": [4, 5], "counts": [3, 2, 15]}},
        {"id": 1, "segmentation": "nobody's"},
    ],
}
QUERIES = {"30993_2": ["tallest bldng", "x"], "30993_1": ["sky"]}


@pytest.fixture
def root(tmp_path):
    images = tmp_path / "data/coco/images/train2014"
    images.mkdir(parents=True)
    for name in ("COCO_train2014_000000000001.jpg", "two.jpg"):
        (images / name).touch()
    for folder in ("images", "mask"):
        (tmp_path / "data/referit" / folder).mkdir(parents=True)
    (tmp_path / "data/referit/images/30993.jpg").touch()
    segments = np.array([[1, 0, 2], [0, 0, 5]], np.int16)
    for name in QUERIES:
        scipy.io.savemat(tmp_path / f"data/referit/mask/{name}.mat", {"segimg_t": segments})
    (tmp_path / "external/refer/data/refcoco").mkdir(parents=True)
    return save(tmp_path)


def save(root, refs=REFS, instances=INSTANCES, queries=QUERIES):
    folder = root / "external/refer/data/refcoco"
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    (folder / "instances.json").write_text(json.dumps(instances))
    for split in DATASETS["referit"].splits:
        (root / f"data/referit/referit_query_{split}.json").write_text(json.dumps(queries))
    return root


def changed(value, path: list, new):
    """A copy of nested lists and dicts with the item at `path` replaced, or removed where `new` is ..."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


@needs_shared
@pytest.mark.parametrize(
    ("dataset", "split", "refs", "expressions"),
    [("unc", "train", 27, 77), ("unc", "val", 4, 10), ("unc", "testA", 7, 20), ("unc", "testB", 4, 12)]
    + [("Gref", "train", 11, 11), ("Gref", "val", 6, 6)],
)
def test_the_real_sample(dataset, split, refs, expressions):
    read = read_refs(SAMPLE, dataset, split)
    texts = [sentence for ref in read for sentence in ref.sentences]
    assert (len(read), len(texts)) == (refs, expressions)
    assert read_expressions(SAMPLE, dataset, split) == texts
    for ref in read:
        mask = ref.mask()
        assert mask.dtype == bool and mask.shape == ref.size and 0 < mask.mean() < 1
        assert ref.image_path.is_file() and ref.image_path.stem == ref.image_name and ref.split == split


def test_coco_refs_by_hand(root):
    first, second = read_refs(root, "unc", "train")
    assert (first.ref_id, first.image_name, first.size) == ("7", "COCO_train2014_000000000001", (10, 12))
    assert first.sentences == ("left", "") and second.sentences == ()
    assert (second.ref_id, second.image_path) == ("9", root / "data/coco/images/train2014/two.jpg")
    expected = np.zeros((10, 12), bool)
    expected[3:8, 2:6] = True
    np.testing.assert_array_equal(first.mask(), expected)
    assert np.argwhere(second.mask()).tolist() == [[0, 1], [3, 0]]
    assert pickle.loads(pickle.dumps(first)) == first  # goes to worker processes


def test_referit_refs_by_hand(root):
    first, second = read_refs(str(root), "referit", "test")
    assert (first.ref_id, second.ref_id) == ("30993_2", "30993_1")
    assert first.image_name == second.image_name == "30993" and first.size is None
    assert first.sentences == ("tallest bldng", "x")
    assert first.mask().tolist() == [[False, True, False], [True, True, False]]
    assert read_expressions(root, "referit", "trainval") == ["tallest bldng", "x", "sky"]


def test_every_data_set_of_the_specification():
    files = {name: str(item.refs_path("R", item.train_split)) for name, item in DATASETS.items()}
    assert {name: (item.family, item.vocabulary, files[name]) for name, item in DATASETS.items()} == {
        "unc": ("mscoco", "Gref", "R/external/refer/data/refcoco/refs(unc).p"),
        "unc+": ("mscoco", "Gref", "R/external/refer/data/refcoco+/refs(unc).p"),
        "Gref": ("mscoco", "Gref", "R/external/refer/data/refcocog/refs(google).p"),
        "Gref_umd": ("mscoco", "Gref", "R/external/refer/data/refcocog/refs(umd).p"),
        "grefcoco": ("mscoco", "Gref", "R/external/refer/data/grefcoco/grefs(unc).json"),
        "referit": ("referit", "referit", "R/data/referit/referit_query_trainval.json"),
    }
    assert str(DATASETS["unc+"].vocabulary_path("R")) == "R/data/vocabulary_Gref.txt"
    assert str(DATASETS["referit"].embeddings_path("R")) == "R/data/referit_emb.npy"


def test_unknown_splits(root):
    assert "it has train, val, testA, testB" in refused(read_refs, root, "unc", "test")
    assert "no refs of the split testA; splits there: train, val" in refused(read_refs, root, "unc", "testA")


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        ([0, "ref_id"], ..., "ref number 0: has no whole number as ref_id"),
        ([0, "ref_id"], "../../x", "ref_id"),
        ([0, "ref_id"], 2**53, "ref_id"),
        ([0, "ref_id"], 9, "ref 9 is there twice"),
        ([0, "ann_id"], 71, "ref 7 of refs(unc).p: annotation 71 is not there"),
        ([0, "image_id"], 3, "ref 7 of refs(unc).p: image 3 is not there"),
        ([0, "image_id"], -1, "image_id"),
        ([0, "sentences"], None, "ref 7 has no list of sentences"),
        ([0, "sentences", 0], ["left"], "ref 7 has no list of sentences"),
        ([0, "sentences"], ..., "ref 7 has no list of sentences"),
        ([0, "sentences", 0, "sent"], float("nan"), "ref 7: an expression is not text"),
        ([0, "ann_id"], None, "ref number 0: has no whole number as ann_id"),
        ([0, "ann_id"], "1e3", "ann_id"),
        ([0, "sentences", 0, "sent"], ..., "ref 7: an expression is not text"),
        ([0, "sentences", 0, "sent"], "\ud800", "ref 7: an expression is not valid Unicode"),
        ([0, "sentences", 0, "sent"], "x" * 10_001, "ref 7: an expression has 10,001 characters"),
        ([0], 3, "is not a list of refs"),
    ],
)
def test_broken_refs(root, path, new, said):
    message = refused(read_refs, save(root, refs=changed(REFS, path, new)), "unc", "train")
    assert said in message and "refs(unc).p" in message


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (["annotations"], ..., "has no list of annotations"),
        (["images"], {}, "has no list of images"),
        (["images", 0], 3, "has no list of images"),
        (["images", 0, "height"], ..., "COCO_train2014_000000000001.jpg: is an empty file"),
        (["images", 0, "height"], float("nan"), "ref 7"),
        (["images", 1, "id"], "1.0", "ref 7 of refs(unc).p: image 1 is there twice"),
        (["annotations", 3, "id"], 70, "ref 7 of refs(unc).p: annotation 70 is there twice"),
        (["annotations", 0, "image_id"], 2, "ref 7 of refs(unc).p: annotation 70 is of image 2, the ref of 1"),
        (["annotations", 0, "image_id"], "x", "annotation 70 is of image x"),
        (["annotations", 2, "segmentation", "counts"], "b'32o0'", "write counts.decode()"),
        (["images", 0, "width"], 0, "ref 7"),
        (["images", 0, "file_name"], "../../x", "ref 7 of refs(unc).p: \"../../x\" is not a plain file name"),
        (["images", 0, "file_name"], "a/b.jpg", "not a plain file name"),
        (["images", 0, "file_name"], 3, "ref 7"),
        (["images", 0, "file_name"], "two.png", "differs from it in the suffix only"),
        (["annotations", 0, "segmentation"], ..., "ref 7"),
        (["annotations", 0, "segmentation"], [[1, 2, 3, 4]], "ref 7 of refs(unc).p: a polygon has 4 numbers"),
        (["annotations", 2, "segmentation", "counts"], [3, 2, 16], "ref 9 of refs(unc).p: the RLE counts do not add"),
    ],
)  # fmt: skip
def test_broken_instances(root, path, new, said):
    message = refused(read_refs, save(root, instances=changed(INSTANCES, path, new)), "unc", "train")
    assert said in message


def test_spellings_of_other_tools_give_the_same_refs(root):
    """Ids and sizes as text or floats, NaN in what is not used, an annotation's image, refs with raw text only."""
    expected = read_refs(root, "unc", "train")
    refs = [{**ref, "ref_id": float(ref["ref_id"]), "ann_id": f"00{ref['ann_id']}", "image_id": "1.0"} for ref in REFS]
    refs[2]["image_id"] = 2
    refs[0]["sentences"] = ["left", {"raw": ""}]
    instances = copy.deepcopy(INSTANCES)
    for image in instances["images"]:
        image.update(id=str(image["id"]), height=float(image["height"]), width=f"{image['width']}", score=float("nan"))
    instances["annotations"][0].update(id=70.0, image_id="1", area=float("inf"))
    assert read_refs(save(root, refs, instances), "unc", "train") == expected


def test_a_size_that_is_missing_is_the_image_s(root):
    Image.new("RGB", (12, 10)).save(root / "data/coco/images/train2014/COCO_train2014_000000000001.jpg")
    for path, new in ((["images", 0, "height"], ...), (["images", 0, "width"], None)):
        (first, _) = read_refs(save(root, instances=changed(INSTANCES, path, new)), "unc", "train")
        assert first.size == (10, 12)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>404</html>", "is a web page (HTML)"),
        (b"\n  <html>", "is a web page (HTML)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "is a zip archive"),
        (b"\x1f\x8b\x08" + bytes(40), "is packed with gzip"),
        ("{}".encode("utf-16"), "is UTF-16 text"),
        (b"", "is an empty file"),
    ],
)
@pytest.mark.parametrize(
    ("dataset", "file"),
    [("unc", "external/refer/data/refcoco/refs(unc).p"), ("unc", "external/refer/data/refcoco/instances.json")]
    + [("referit", "data/referit/referit_query_test.json"), ("referit", "data/referit/mask/30993_2.mat")],
)
def test_what_a_download_really_is_is_said(root, dataset, file, content, said):
    (root / file).write_bytes(content)
    read = lambda: [ref.mask() for ref in read_refs(root, dataset, "train" if dataset == "unc" else "test")]  # noqa: E731
    message = refused(read)
    assert f"{file}: {said}" in message


def test_annotations_of_other_splits_are_not_looked_at(root):
    assert len(read_refs(save(root, refs=changed(REFS, [1, "ann_id"], "x")), "unc", "train")) == 2


@pytest.mark.parametrize(
    ("queries", "said"),
    [(text, "") for text in ("[]", "{}", "3", '{"1_1": "sky"}', '{"1_1": [3]}', '{"_1": ["a"]}', '{"../1_1": ["a"]}')]
    + [('{"11": ["a"]}', '"11" is not IMAGE_NUMBER'), ('{"1_2": ["sky"], "1_2": ["x"]}', 'key "1_2" is there twice')],
)
def test_broken_queries(root, queries, said):
    (root / "data/referit/referit_query_test.json").write_text(queries)
    message = refused(read_refs, root, "referit", "test")
    assert "referit_query_test.json: " in message and said in message


def test_missing_files_are_named(root):
    (root / "data/referit/mask/30993_1.mat").unlink()
    assert "mask/30993_1.mat: no such file; get" in refused(read_refs, root, "referit", "test")
    (root / "data/referit/images/30993.jpg").unlink()
    assert "images/30993.jpg: no such file; get" in refused(read_refs, root, "referit", "test")
    (root / "data/referit/images").rmdir()
    assert "images: No such file" in refused(read_refs, root, "referit", "test")
    for image in (root / "data/coco/images/train2014").iterdir():
        image.unlink()
    message = refused(read_refs, root, "unc", "train")
    assert "COCO_train2014_000000000001.jpg: no such file (2 images are missing); get" in message
