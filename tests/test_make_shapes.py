"""The synthetic data set, judged from its files alone, by another reader of files and another reader of words."""

import hashlib
import json
import pickle
import pickletools
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import loadmat
from scipy.ndimage import binary_fill_holes, label

from tools.shapes import meanings
from tools.shapes.drawing import visible_masks
from tools.shapes.formats import annotation, segmentation
from tools.shapes.meanings import Phrase, View
from tools.shapes.scenes import Thing, sample_scene

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "make_shapes.py"
IMAGES = {"train": 40, "val": 6, "testA": 5, "testB": 5}
SEED = 4  # some of its images are grayscale, at both levels
REFS_FILES = [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "google"), ("refcocog", "umd")]
RGB = {
    "red": (212, 38, 42), "orange": (244, 140, 28), "yellow": (248, 220, 50), "green": (46, 160, 67),
    "blue": (36, 96, 214), "purple": (138, 54, 178), "white": (244, 244, 240),
}  # fmt: skip


def make(root, *arguments, cwd=None):
    command = [sys.executable, str(SCRIPT), "--root", str(root), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def arguments(level="easy", seed=SEED, images=IMAGES):
    sizes = ["--images", images["train"], "--val_images", images["val"], "--test_images", images["testA"]]
    return ["--level", level, "--seed", seed, *sizes, "--workers", 1]


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@dataclass
class Made:
    level: str
    root: Path
    instances: dict
    refs: dict

    def image(self, image_id):
        return Image.open(self.root / f"data/coco/images/train2014/COCO_train2014_{image_id:012d}.jpg")


@pytest.fixture(scope="module", params=["easy", "full"])
def made(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    result = make(root, *arguments(request.param))
    assert result.returncode == 0, result.stderr
    refer = root / "external/refer/data"
    refs = {(d, s): pickle.loads((refer / d / f"refs({s}).p").read_bytes()) for d, s in REFS_FILES}
    return Made(request.param, root, json.loads((refer / "refcoco/instances.json").read_text()), refs)


def decode(entry, height, width):
    encoded = coco_mask.frPyObjects(entry, height, width)
    return coco_mask.decode(coco_mask.merge(encoded) if isinstance(entry, list) else encoded).astype(bool)


def masks_of(made):
    sizes = {i["id"]: (i["height"], i["width"]) for i in made.instances["images"]}
    return {a["id"]: decode(a["segmentation"], *sizes[a["image_id"]]) for a in made.instances["annotations"]}


# --- the files ---


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


# --- the masks ---


def test_decoded_masks_are_the_drawn_ones(made):
    masks, overlaps = masks_of(made), []
    by_image = {}
    for a in made.instances["annotations"]:
        by_image.setdefault(a["image_id"], []).append(a)
    for index in range(sum(IMAGES.values())):
        scene, _ = sample_scene(np.random.default_rng([SEED, index]), made.level, 128)
        drawn = visible_masks(scene)
        entries = by_image[index + 1]
        assert len(entries) == len(drawn)
        for a, (full, visible) in zip(entries, drawn, strict=True):
            decoded = masks[a["id"]]
            overlaps.append((decoded & visible).sum() / (decoded | visible).sum())
            assert a["area"] == visible.sum() >= 0.6 * full.sum()
            assert a["area"] >= 60  # pixels at 128 x 128
            box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(decoded)))
            assert np.allclose(a["bbox"], box)
    assert min(overlaps) >= 0.9
    assert np.mean(np.array(overlaps) > 0.97) > 0.95


def test_masks_lie_on_the_shapes_in_the_photograph(made):
    """Pixels of the shape's hue (its rim is a darker shade of it) near the mask are the mask's."""
    masks, overlaps = masks_of(made), []
    for a in made.instances["annotations"]:
        image, mask = made.image(a["image_id"]), masks[a["id"]]
        if image.mode == "L" or colour_of(made, a, mask) == "white":
            continue
        pixels = np.asarray(image, float)
        hue = np.median(pixels[mask], axis=0)
        cosine = pixels @ hue / np.linalg.norm(pixels, axis=2) / np.linalg.norm(hue)
        x, y, w, h = (int(v) for v in a["bbox"])
        window = np.zeros_like(mask)
        window[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2] = True
        found = (cosine > 0.97) & window
        others = [
            masks[b["id"]] for b in made.instances["annotations"] if b["image_id"] == a["image_id"] and b is not a
        ]
        found &= ~np.any(others, axis=0)
        overlaps.append((found & mask).sum() / (found | mask).sum())
    assert len(overlaps) > 60
    assert np.median(overlaps) > 0.85
    assert np.quantile(overlaps, 0.05) > 0.6


def test_some_masks_are_in_pieces_and_rings_have_their_hole(made):
    forms = Counter()
    masks = masks_of(made)
    names = {c["id"]: c["name"] for c in made.instances["categories"]}
    referred = {r["ann_id"] for r in made.refs["refcoco", "unc"]}
    for a in made.instances["annotations"]:
        mask, form = masks[a["id"]], a["segmentation"]
        hole = (binary_fill_holes(mask) & ~mask).sum()
        if isinstance(form, dict):
            assert set(form) == {"counts", "size"} and sum(form["counts"]) == mask.size
            assert isinstance(form["counts"], list) and form["size"] == list(mask.shape)
            assert names[a["category_id"]] == "ring" and hole > 20
        else:
            assert hole == 0
            assert len(form) == label(mask)[1]
            assert all(len(p) >= 8 and len(p) % 2 == 0 for p in form)
        kind = "rle" if isinstance(form, dict) else "pieces" if len(form) > 1 else "one"
        forms[kind] += a["id"] in referred
    assert forms["rle"] >= 5 and forms["pieces"] >= 5 and forms["one"] >= 50


def queries(made, split):
    return json.loads((made.root / f"data/referit/referit_query_{split}.json").read_text())


def test_referit_is_a_twin(made):
    """Its image n is COCO's image n, its object k the k-th annotation there, where segimg_t is 0."""
    masks = masks_of(made)
    files = sorted((made.root / "data/referit/images").iterdir(), key=lambda p: int(p.stem))
    assert len(files) == sum(IMAGES.values())
    all_queries = queries(made, "trainval") | queries(made, "test")
    for image, file in zip(made.instances["images"], files, strict=True):
        assert Image.open(file).size == (image["width"], image["height"])
        entries = [a for a in made.instances["annotations"] if a["image_id"] == image["id"]]
        for k, a in enumerate(entries, 1):
            mat = loadmat(made.root / f"data/referit/mask/{file.stem}_{k}.mat")["segimg_t"]
            assert np.array_equal(mat == 0, masks[a["id"]])
            all_queries.pop(f"{file.stem}_{k}", None)
    assert not all_queries  # no query without an image and a mask


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_any_mask_survives_its_segmentation(mask):
    assert np.array_equal(decode(segmentation(mask), *mask.shape), mask)
    assert annotation(mask, 1, 1, 1)["area"] == mask.sum()


# --- the words ---


@dataclass(eq=False)
class Seen:
    """A thing as somebody sees it who has the picture and the outlines."""

    kind: str
    colour: str | None
    size: str
    x: float
    y: float


def colour_of(made, a, mask):
    image = made.image(a["image_id"])
    if image.mode == "L":
        return None
    middle = np.median(np.asarray(image, float)[mask], axis=0)
    return min(RGB, key=lambda name: np.abs(middle - RGB[name]).sum())


def look(made):
    """image id -> {annotation id: Seen}, with width and height of the images."""
    names, masks = {c["id"]: c["name"] for c in made.instances["categories"]}, masks_of(made)
    sizes = {i["id"]: (i["width"], i["height"]) for i in made.instances["images"]}
    seen = {}
    for a in made.instances["annotations"]:
        x, y, w, h = a["bbox"]
        size = "big" if max(w, h) > 0.2 * max(sizes[a["image_id"]]) else "small"
        thing = Seen(names[a["category_id"]], colour_of(made, a, masks[a["id"]]), size, x + w / 2, y + h / 2)
        seen.setdefault(a["image_id"], {})[a["id"]] = thing
    return seen, sizes


KIND = "circle|square|triangle|star|ring|cross|diamond|shape|one"
PHRASE = rf"(?:(?:small|big) )?(?:(?:{'|'.join(RGB)}) )?(?:{KIND})"
FILLER = "a|all|an|counted|ground|image|in|is|it|lies|lying|of|on|picture|put|somewhere|that|the|them|there|this|was"
FILLER += "|which|whole"
FILLERS = rf"(?:(?:{FILLER}) )*?"
FORMS = [  # in order: the first that fits the whole sentence
    ("closest", rf"{FILLERS}({PHRASE}) {FILLERS}closest to the ({PHRASE})"),
    ("beside", rf"{FILLERS}({PHRASE}) {FILLERS}(left of|right of|above|below) the ({PHRASE})"),
    ("second", rf"{FILLERS}second ({PHRASE}) {FILLERS}from the (left|right|top|bottom)"),
    ("extreme", rf"{FILLERS}(left-most|right-most|highest|lowest) ({PHRASE})(?: {FILLERS}(?:{FILLER}))?"),
    (
        "place",
        rf"{FILLERS}({PHRASE}) {FILLERS}(?:on the (left|right)|at the (top|bottom))(?: of the (?:picture|image))?",
    ),
    ("plain", rf"{FILLERS}({PHRASE})(?: {FILLERS}(?:{FILLER}))?"),
]
TOWARDS = {  # the direction of a word as (x, y), y downwards
    "left": (-1, 0), "left of": (-1, 0), "left-most": (-1, 0),
    "right": (1, 0), "right of": (1, 0), "right-most": (1, 0),
    "top": (0, -1), "above": (0, -1), "highest": (0, -1), "bottom": (0, 1), "below": (0, 1), "lowest": (0, 1),
}  # fmt: skip


def parse(text):
    for form, pattern in FORMS:
        if match := re.fullmatch(pattern, text):
            return form, [group for group in match.groups() if group]
    raise AssertionError(f"cannot read {text!r}")


def fitting(phrase, things):
    words = set(phrase.split()) - {"shape", "one"}
    return [t for t in things if words <= {t.kind, t.colour, t.size}]


def readings(text, things, width, height):
    """What the sentence means under a loose and under a strict reading: two lists of things."""
    form, parts = parse(text)
    if form == "plain":
        return [fitting(parts[0], things)] * 2
    if form == "closest":
        (anchor,) = fitting(parts[1], things)
        rest = [t for t in fitting(parts[0], things) if t is not anchor]
        ranked = sorted(rest, key=lambda t: (t.x - anchor.x) ** 2 + (t.y - anchor.y) ** 2)
        return [ranked[:1]] * 2
    word = next(p for p in parts if p in TOWARDS)
    phrase = next(p for p in parts if p not in TOWARDS)
    dx, dy = TOWARDS[word]
    things = fitting(phrase, things) if form != "beside" else things
    if form in ("extreme", "second"):
        ranked = sorted(things, key=lambda t: -(t.x * dx + t.y * dy))
        return [ranked[1:2] if form == "second" else ranked[:1]] * 2
    if form == "place":
        along = {t: (t.x - width / 2) / width * dx + (t.y - height / 2) / height * dy for t in things}
        return [[t for t in things if along[t] > limit] for limit in (0, 0.09)]
    (anchor,) = fitting(parts[2], things)
    candidates = [t for t in fitting(phrase, things) if t is not anchor]
    along = {t: (t.x - anchor.x) * dx + (t.y - anchor.y) * dy for t in candidates}
    across = {t: abs((t.x - anchor.x) * dy) + abs((t.y - anchor.y) * dx) for t in candidates}
    return [t for t in candidates if along[t] > 0], [t for t in candidates if along[t] > max(across[t], 5)]


def spoken(made):
    """Every (data set, image id, annotation id, sentence)."""
    for (dataset, _), refs in made.refs.items():
        for ref in refs:
            for s in ref["sentences"]:
                yield dataset, ref["image_id"], ref["ann_id"], s["sent"]
    by_image = {}
    for a in made.instances["annotations"]:
        by_image.setdefault(a["image_id"], []).append(a["id"])
    for key, texts in (queries(made, "trainval") | queries(made, "test")).items():
        image_id, k = int(key.split("_")[0]) - 20_000, int(key.split("_")[1])
        for text in texts:
            yield "referit", image_id, by_image[image_id][k - 1], text


def test_each_expression_means_its_ref_and_nothing_else(made):
    seen, sizes = look(made)
    forms = Counter()
    for dataset, image_id, ann_id, text in spoken(made):
        things = seen[image_id]
        for meaning in readings(text, list(things.values()), *sizes[image_id]):
            assert meaning == [things[ann_id]], (dataset, image_id, ann_id, text, things)
        forms[parse(text)[0]] += 1
    wanted = {"plain", "place", "beside"} | ({"extreme", "second", "closest"} if made.level == "full" else set())
    assert set(forms) == wanted and min(forms.values()) >= 10


def test_refcoco_plus_does_not_speak_of_places(made):
    allowed = set(RGB) | {"small", "big", "the"} | set(KIND.split("|"))
    words = {w for r in made.refs["refcoco+", "unc"] for s in r["sentences"] for w in s["tokens"]}
    assert words <= allowed


def test_level(made):
    seen, _ = look(made)
    counts = Counter(len(things) for things in seen.values())
    assert set(counts) == ({2, 3, 4} if made.level == "easy" else {3, 4, 5, 6, 7})
    if made.level == "easy":
        for things in seen.values():
            colours = [t.colour or t.kind for t in things.values()]  # kinds in grayscale
            assert len(set(colours)) == len(colours)
        return
    twins = [
        any((t.kind, t.colour) == (u.kind, u.colour) for u in things.values() if u is not t)
        for things in seen.values()
        for t in things.values()
    ]
    assert np.mean(twins) > 0.4  # kind and colour alone do not tell these


def things_at(*positions):
    mask = np.zeros((100, 100), bool)
    return View([Thing("star", "red", "small", x, y, mask) for x, y in positions], 100, 100)


STAR = Phrase(None, None, "star", "star")


@pytest.mark.parametrize(
    "truth, expected",
    [
        (meanings.extreme(things_at((20, 50), (60, 50)), STAR, "left"), [True, False]),
        (meanings.extreme(things_at((20, 50), (24, 50)), STAR, "left"), [None, None]),
        (meanings.extreme(things_at((20, 50), (40, 50), (90, 9)), STAR, "right", rank=2), [False, True, False]),
        (meanings.on_side(things_at((20, 50), (47, 50), (80, 50)), STAR, "left"), [True, None, False]),
        (meanings.on_side(things_at((20, 90), (20, 10)), STAR, "bottom"), [True, False]),
        (meanings.described(things_at((20, 50), (60, 50)), STAR), [True, True]),
        (meanings.beside(things_at((20, 50), (60, 50)), STAR, "right", STAR), [None, None]),  # which star?
        (meanings.closest(things_at((20, 50), (60, 50)), STAR, STAR), [None, None]),
    ],
)
def test_what_is_too_close_to_call_is_said_to_be(truth, expected):
    assert truth == expected


def test_beside_and_closest():
    view = things_at((20, 50), (60, 50), (60, 95), (22, 80), (5, 50))
    view.things.append(Thing("ring", "blue", "big", 20, 50, view.things[0].mask))
    ring = Phrase("big", "blue", "ring", "ring")
    # at the same place: unclear; right; right and much lower: unclear; hardly right: unclear; left: no
    assert meanings.beside(view, STAR, "right", ring) == [None, True, None, None, False, False]
    assert meanings.closest(things_of(view, 1, 2, 5), STAR, ring) == [True, False, False]
    assert meanings.closest(things_of(view, 2, 3, 4, 5), STAR, ring) == [False, False, True, False]
    assert meanings.meant([False, True, None]) is None
    assert meanings.meant([True, True]) is None
    assert meanings.meant([False, True]) == 1


def things_of(view, *indices):
    return View([view.things[i] for i in indices], view.height, view.width)


# --- the script ---

SMALL = {"train": 5, "val": 2, "testA": 2, "testB": 2}


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
    for extra in ([], ["--overwrite"]):
        refused = make(tmp_path, *arguments(images=SMALL), *extra)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and Path(place).name in refused.stderr
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


def test_a_damaged_record_is_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    for content in ("[1]", "{", '{"arguments": {"images": 3}}'):
        (tmp_path / "data/shapes.json").write_text(content)
        refused = make(tmp_path, *arguments(images=SMALL), "--overwrite")
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "shapes.json" in refused.stderr


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
