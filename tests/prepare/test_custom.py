"""Users' own data: JSON Lines and RefCOCO's layout, names that would clash, and what is wrong with broken files."""

import gzip
import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import build_vocab
from prepare import own_data as custom
from prepare.own_data import OwnData, own_data
from tests.support.builder import tree
from tests.support.hostile import refused
from utils.cli import run_main
from utils.errors import InputError
from utils.prepared import PreparedSplit
from utils.text import SPECIAL_WORDS, Vocabulary

SQUARE = [[2, 3, 6, 3, 6, 8, 2, 8]]
MASK = np.zeros((10, 12), bool)
MASK[3:8, 2:6] = True
RUNS = coco.encode(np.asfortranarray(MASK.astype(np.uint8)))
LINES = [
    {"image": "a/1.jpg", "polygon": SQUARE, "text": ["left man", "man"], "split": "train"},
    {"image": "b/1.jpg", "rle": {**RUNS, "counts": RUNS["counts"].decode()}, "text": "left", "split": "train"},
    {"image": "a/1.jpg", "mask": "masks/1.png", "text": "red", "split": "val"},
    {"image": "b/1.jpg", "mask": "masks/gray.png", "text": "red", "split": "val", "more": 1},
    {"image": "two.png", "polygon": SQUARE, "text": "zebra", "split": "val"},
]


@pytest.fixture
def folder(tmp_path):
    """The files that LINES name, each image of a colour of its own, and a vocabulary that lacks every word."""
    for number, name in enumerate(["a/1.jpg", "b/1.jpg", "two.png"]):
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (80 * number, 0, 0)).save(path)
    (tmp_path / "own/masks").mkdir()
    Image.fromarray(MASK).save(tmp_path / "own/masks/1.png")
    Image.fromarray(MASK.astype(np.uint8) * 7).save(tmp_path / "own/masks/gray.png")
    save(tmp_path / "own", LINES)
    (tmp_path / "own/words.txt").write_text("\n".join(SPECIAL_WORDS))
    return tmp_path / "own"


@pytest.fixture
def prepare(folder, build):
    """prepare(split): build_batches.py on refs.jsonl with that vocabulary -> (exit code, output, errors)."""
    flags = ["--refs", str(folder / "refs.jsonl"), "--vocabulary", str(folder / "words.txt")]
    return lambda split: build(folder.parent, "own", split, *flags)


def save(folder, lines):
    path = folder / "refs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def lines_data(folder, lines=LINES):
    return OwnData("own", save(folder, lines), None, None)


def coco_data(folder, file_name="a/1.jpg", suffix="json"):
    ref = {"ref_id": 7, "ann_id": 70, "image_id": 1, "split": "train", "sentences": [{"sent": "left"}]}
    refs = folder / f"refs.{suffix}"
    refs.write_bytes(json.dumps([ref]).encode() if suffix == "json" else pickle.dumps([ref], 2))
    image = {"id": 1, "height": 10, "width": 12, "file_name": file_name}
    annotation = {"id": 70, "segmentation": SQUARE}
    (folder / "inst.json").write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    return OwnData("own", refs, folder / "inst.json", folder)


def test_every_kind_of_outline(folder):
    first, second = lines_data(folder).read_refs("train")
    val = lines_data(folder, ["", *LINES, " "]).read_refs("val")
    assert [ref.ref_id for ref in (first, second, *val)] == ["1", "2", "4", "5", "6"]  # lines, counted from 1
    assert (first.sentences, second.sentences) == (("left man", "man"), ("left",))
    assert (first.size, second.size, val[0].size) == ((10, 12), (10, 12), None)
    for ref in (first, second, *val):
        mask = ref.mask()
        np.testing.assert_array_equal(mask, MASK)
        assert set(np.unique(mask.view(np.uint8))) == {0, 1}
        assert ref.image_path.is_file()


def test_names_are_distinct_whatever_the_paths_are(folder):
    files = ["a/1.jpg", "a__1.jpg", "1.jpg", "1.png", "b/1.jpg", "c/" * 80 + "1.jpg", "c.d.jpg"]
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10)).save(folder / name)
    data = lines_data(folder, [{**LINES[0], "image": name} for name in files])
    names = {ref.image_path.relative_to(folder).as_posix(): ref.image_name for ref in data.read_refs("train")}
    assert len(set(names.values())) == len(files) and all(len(name) <= 100 for name in names.values())
    assert names["b/1.jpg"] == "b__1" and names["c.d.jpg"] == "c.d"
    again = lines_data(folder, [{**LINES[0], "image": name} for name in reversed(files)]).read_refs("train")
    assert {ref.image_name for ref in again} == set(names.values())


@pytest.mark.parametrize("flags", [[], ["--self_contained"]])
def test_batches_of_images_with_the_same_name(folder, build, flags):
    root = folder.parent
    (root / "data").mkdir()
    (root / "data/vocabulary_own.txt").write_text("\n".join([*SPECIAL_WORDS, "left", "man"]))
    flags = ["--refs", str(folder / "refs.jsonl"), *flags]
    assert [build(root, "own", split, *flags)[::2] for split in ("train", "val")] == [(0, "")] * 2
    data = PreparedSplit(root / "data/custom/own_48_batch", "val")
    assert [data.text(i)[2] for i in range(3)] == ["a__1", "b__1", "two"]
    reds = [int(np.median(data.image(i)[..., 0])) for i in range(3)]
    assert np.allclose(reds, [0, 80, 160], atol=3)
    assert all((data.mask(i) == MASK).all() for i in range(3))
    assert data.embeddings_file() == (root / "data/own_emb.npy").resolve() and len(data.vocabulary()) == 6
    train = PreparedSplit(root / "data/custom/own_48_batch", "train")
    assert len(train) == 3 and train.image(2).shape == (48, 48, 3) and train.image_groups() == [[0, 1], [2]]
    before = tree(data.folder)
    Image.fromarray(~MASK).save(folder / "masks/1.png")
    code, _, error = build(root, "own", "val", *flags)
    assert code == 2 and "other expressions, masks or images" in error and tree(data.folder) == before


def test_the_layout_of_refcoco(folder, build):
    for suffix in ("json", "p"):
        (ref,) = coco_data(folder, suffix=suffix).read_refs("train")
        assert (ref.ref_id, ref.image_name, ref.image_path) == ("7", "a__1", folder / "a/1.jpg")
        np.testing.assert_array_equal(ref.mask(), MASK)
    own = coco_data(folder)
    words = (folder / "words.txt").rename(folder / "vocabulary_Gref.txt")
    flags = ["--refs", own.refs, "--instances", own.instances, "--images", folder, "--vocabulary", words]
    code, output, error = build(folder.parent, "own", "train", *map(str, flags))
    assert (code, error) == (0, "") and "1 refs, 1 expressions, 1 images" in output
    data = PreparedSplit(folder.parent / "data/custom/own_48_batch", "train")
    assert data.embeddings_file().name == "Gref_emb.npy"


@pytest.mark.parametrize(
    "name", ["../a/1.jpg", "/etc/passwd", "a/../../x.jpg", "C:\\x.jpg", "", "a/.hidden", "..\\x", 3]
)
def test_paths_stay_in_the_folder(folder, name):
    leaves = name in ("../a/1.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x")
    fault = "leaves the folder of images" if leaves else "not a" if isinstance(name, str) else "not a string"
    for line in ({**LINES[0], "image": name}, {**LINES[2], "mask": name, "split": "train"}):
        message = refused(lines_data(folder, [line]).read_refs, "train")
        assert "refs.jsonl: line 1" in message and fault in message
    message = refused(coco_data(folder, name).read_refs, "train")
    assert "inst.json: ref 7" in message and fault in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("[" * 100_000, "line 2: is not JSON"),
        ("\udcff", "line 2: is not JSON"),
        ("[1]", "line 2: is not a JSON object"),
        ({**LINES[0], "split": 3}, 'line 2: has no "split"'),
        ({**LINES[0], "text": []}, 'line 2: has no "text"'),
        ({**LINES[0], "text": [3]}, "line 2: an expression is not text"),
        ({**LINES[0], "text": "x" * 10_001}, "line 2: an expression has 10,001 characters"),
        ({**LINES[0], "mask": "masks/1.png"}, "line 2: has to have one of mask, polygon, rle, and has 2"),
        ({"image": "a/1.jpg", "text": "a", "split": "train"}, "and has 0"),
        ({**LINES[0], "polygon": [2, 3, 6, 3, 6, 8]}, "line 2: a polygon is not a list of numbers"),
        ({**LINES[0], "polygon": LINES[1]["rle"]}, 'line 2: "polygon" is a list of polygons, "rle" an object'),
        ({**LINES[1], "rle": {"size": [12, 10], "counts": [120]}}, "line 2: the RLE is not for the image"),
        ({**LINES[2], "split": "train", "mask": "a/1.jpg"}, "line 2: the mask is not a .png file"),
        ({**LINES[2], "split": "train", "mask": "masks/2.png"}, "masks/2.png: no such file; fix the entry"),
        ({**LINES[0], "image": "a/2.jpg"}, "a/2.jpg: no such file; fix the entry"),
        ({**LINES[0], "image": "c/2.jpg"}, "c/2.jpg: no such file"),
        ({**LINES[0], "image": "refs.jsonl"}, "refs.jsonl: is truncated, damaged or no image; fix the entry"),
    ],
)
def test_broken_lines_are_named(folder, line, said):
    path = folder / "refs.jsonl"
    line = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(f"{json.dumps(LINES[0])}\n{line}".encode("utf-8", "surrogateescape"))
    assert said in refused(OwnData("own", path, None, None).read_refs, "train")


def test_all_faults_are_listed_with_their_lines_before_anything_is_built(folder, prepare):
    Image.new("1", (5, 6)).save(folder / "masks/small.png")
    lines = ["{", LINES[0], {**LINES[0], "image": "a/2.jpg", "text": None}, {**LINES[2], "mask": "masks/small.png"}]
    lines += [{**LINES[0], "split": 3}, {**LINES[2], "split": "train", "mask": "masks/small.png"}]
    lines += [
        '{"image": "a/1.jpg", "text": "a", "text": "b", "split": "train"}',
        {**LINES[0], "polygon": [[1, 2, 3, 4]], "text": ["left", " "]},
    ]
    save(folder, lines)
    expected = [
        "line 1: is not JSON",
        "line 3: ",
        'line 3: has no "text"',
        'line 5: has no "split"',
        "line 6: the mask",
        'the key "text" is there twice',
        "line 8: a polygon has 4 numbers",
        "line 8: an expression is empty; fix it or pass --skip_empty",
    ]
    code, _, error = prepare("train")
    shown = error.splitlines()
    assert code == 2 and len(shown) == len(expected) and not (folder.parent / "data/custom").exists(), error
    for line, words_of_it in zip(shown, expected, strict=True):
        assert line.startswith("build_batches.py: error: ") and words_of_it in line
    assert "6 x 5 pixels (height x width), the image 10 x 12" in shown[4]
    save(folder, ["{"] * 25)
    _, _, error = prepare("train")
    assert error.count("\n") == 21 and error.endswith("and 5 more faults\n")


def test_faults_of_refcoco_s_layout_are_listed_too(folder):
    own = replace(coco_data(folder), skip_empty=False)
    ref = json.loads(own.refs.read_text())[0]
    others = {"ref_id": 8, "ann_id": 9}, {"ref_id": "x"}, {}, {"ref_id": 10, "sentences": [""]}
    own.refs.write_text(json.dumps([ref, *({**ref, **other} for other in others)]))
    with pytest.raises(InputError) as caught:
        own.read_refs("train")
    faults = str(caught.value).splitlines()
    expected = "ref number 2", "ref 7 is there twice", "ref 10: an expression is empty", "annotation 9 is not"
    assert all(words in fault for fault, words in zip(faults, expected, strict=True))


@pytest.mark.parametrize("name", ["refs.jsonl", "REFS.JSONL", "refs.ndjson", "refs.jsonl.gz", "refs.NDJSON.GZ"])
def test_files_of_lines_as_other_tools_write_them(folder, name):
    """Names of the file, a byte order mark, CRLF, null for absent keys, NaN, backslashes, .PNG."""
    (folder / "masks/1.png").rename(folder / "masks/1.PNG")
    lines = [
        {**LINES[0], "image": "a\\1.jpg", "mask": None, "rle": None, "score": float("nan")},
        {**LINES[2], "image": ".\\a\\1.jpg", "mask": "masks\\1.PNG", "polygon": None, "split": "train"},
    ]
    data = b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode() + b"\r\n"
    (folder / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    refs = OwnData("own", folder / name, None, None).read_refs("train")
    assert [ref.ref_id for ref in refs] == ["1", "2"] and all((ref.mask() == MASK).all() for ref in refs)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{}".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", b"<html></html>", "is a web page"),
        ("a.jsonl.gz", b"{}", "is damaged or not packed with gzip"),
        ("a.jsonl.gz", gzip.compress(bytes(1_000_000)), "has more"),
    ],
)
def test_lines_that_are_something_else_or_unpack_to_far_more(folder, monkeypatch, name, content, said):
    monkeypatch.setattr(custom, "MAX_LINES_BYTES", 10_000)
    (folder / name).write_bytes(content)
    assert f"{name}: {said}" in refused(OwnData("own", folder / name, None, None).read_refs, "train")


def test_the_message_about_unknown_words_names_a_command_for_this_data_set(folder, prepare):
    code, output, _ = prepare("train")
    assert code == 0 and f"build_vocab.py -d own --refs {folder / 'refs.jsonl'} --root {folder.parent}" in output


def test_missing_splits_and_files_and_flags_that_do_not_go_together_are_named(folder, build):
    assert "no line of the split test; splits there: train, val" in refused(lines_data(folder).read_refs, "test")
    assert "none.jsonl: no such file; docs" in refused(OwnData("n", folder / "none.jsonl", None, None).read_refs, "val")
    refs, other = folder / "refs.jsonl", folder / "refs.p"
    assert own_data("unc", None) is None
    assert own_data("my-data_2", refs) == OwnData("my-data_2", refs, None, None)
    assert "known are unc" in refused(own_data, "own", None)
    assert "--refs FILE gives" in refused(own_data, "own", None, None, folder)
    assert "public data set" in refused(own_data, "unc", refs)
    for name in ("../x", "a b", "", ".x", "-x", "a/b", "x" * 65, "a\n"):
        assert "a name has letters" in refused(own_data, name, refs)
    assert "--instances goes with" in refused(own_data, "own", refs, folder / "inst.json")
    code, _, error = build(folder.parent, "own", "train", "--refs", str(other))
    assert code == 2 and "give --instances and --images too" in error


def test_words_come_from_the_splits_for_training(folder, monkeypatch, capsys):
    root = folder.parent

    def run(*flags) -> str:
        monkeypatch.setattr(sys, "argv", ["build_vocab.py", "--root", str(root), *map(str, flags)])
        with pytest.raises(SystemExit) as left:
            run_main(build_vocab.main)
        return f"{left.value.code} {''.join(capsys.readouterr())}"

    lines_data(folder, [*LINES, {**LINES[0], "split": "train2", "text": "man hat"}])
    assert run("-d", "own", "--refs", folder / "refs.jsonl").startswith("0 ")
    assert Vocabulary.load(root / "data/vocabulary_own.txt").words == [*SPECIAL_WORDS, "man", "left", "hat"]
    assert run("-d", "two", "--refs", coco_data(folder).refs).startswith("0 ")
    assert Vocabulary.load(root / "data/vocabulary_two.txt").words == [*SPECIAL_WORDS, "left"]
    lines_data(folder, LINES[2:])
    assert 'no split has "train" in its name' in run("-d", "three", "--refs", folder / "refs.jsonl")
    assert "--refs goes with one name" in run("-d", "own", "two", "--refs", folder / "refs.jsonl")
    assert not (root / "data/vocabulary_three.txt").exists()
