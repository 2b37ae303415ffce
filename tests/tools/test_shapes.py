"""The shapes' masks and expressions, read by pycocotools, SciPy and a small reader of English that shares no code."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes, label

from tests.support.shapes import IMAGES, RGB, SEED, arguments, decode, made_shapes, make
from tools.shapes.dataset import annotation
from tools.shapes.scenes import sample_scene, visible_masks


@pytest.fixture(scope="module")
def made():
    return made_shapes()


def test_decoded_masks_are_the_drawn_ones(made):
    overlaps = []
    for index in range(sum(IMAGES.values())):
        scene, _ = sample_scene(np.random.default_rng([SEED, index]), 128)
        for thing, (full, visible) in zip(made.things[index + 1], visible_masks(scene), strict=True):
            overlaps.append((thing.mask & visible).sum() / (thing.mask | visible).sum())
            assert thing.entry["area"] == visible.sum() >= 0.6 * full.sum()
            assert thing.entry["area"] >= 60  # pixels at 128 x 128
            box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(thing.mask)))
            assert np.allclose(thing.entry["bbox"], box)
    assert min(overlaps) >= 0.9
    assert np.mean(np.array(overlaps) > 0.97) > 0.95


def test_masks_lie_on_the_shapes_in_the_image(made):
    """Pixels of the shape's hue (its rim is a darker shade of it) near the mask are the mask's."""
    overlaps = []
    for things in made.things.values():
        for thing in things:
            if thing.colour in (None, "white"):
                continue
            pixels, mask = np.asarray(thing.image, float), thing.mask
            hue = np.median(pixels[mask], axis=0)
            cosine = pixels @ hue / np.linalg.norm(pixels, axis=2) / np.linalg.norm(hue)
            x, y, w, h = (int(v) for v in thing.entry["bbox"])
            window = np.zeros_like(mask)
            window[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2] = True
            found = (cosine > 0.97) & window & ~np.any([other.mask for other in things if other is not thing], axis=0)
            overlaps.append((found & mask).sum() / (found | mask).sum())
    assert len(overlaps) > 60
    assert np.median(overlaps) > 0.85
    assert np.quantile(overlaps, 0.05) > 0.6


def test_some_masks_are_in_pieces_and_only_rings_have_a_hole(made):
    forms = Counter()
    referred = {r["ann_id"] for r in made.refs}
    for thing in (thing for things in made.things.values() for thing in things):
        hole = (binary_fill_holes(thing.mask) & ~thing.mask).sum()
        assert hole == 0 or thing.kind == "ring" and hole > 20
        form = "ring" if hole else "pieces" if label(thing.mask)[1] > 1 else "one"
        forms[form] += thing.entry["id"] in referred
    assert forms["ring"] >= 3 and forms["pieces"] >= 3 and forms["one"] >= 50


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_any_mask_survives_its_run_lengths(mask):
    entry = annotation(mask, 1, 1, 1)
    assert np.array_equal(decode(entry["segmentation"], *mask.shape), mask) and entry["area"] == mask.sum()


KINDS = "circle|square|triangle|star|ring|cross|diamond|shape|one"
PHRASE = rf"((?:(?:small|big) )?(?:(?:{'|'.join(RGB)}) )?(?:{KINDS}))"
FORMS = {  # in order: the first that fits the whole expression
    "beside": rf"(?:the )?{PHRASE} (left of|right of|above|below) the {PHRASE}",
    "place": rf"(?:the )?{PHRASE} (?:on the (left|right)|at the (top|bottom))",
    "plain": rf"(?:the )?{PHRASE}",
}
TOWARDS = {  # the direction of a word as (x, y), y downwards
    "left": (-1, 0), "left of": (-1, 0), "right": (1, 0), "right of": (1, 0),
    "top": (0, -1), "above": (0, -1), "bottom": (0, 1), "below": (0, 1),
}  # fmt: skip


def parse(text):
    for form, pattern in FORMS.items():
        if match := re.fullmatch(pattern, text):
            return form, [group for group in match.groups() if group]
    raise AssertionError(f"cannot read {text!r}")


def fitting(phrase, things):
    words = set(phrase.split()) - {"shape", "one"}
    return [t for t in things if words <= {t.kind, t.colour, t.size}]


def readings(text, things, width, height):
    """What the expression means under a loose and under a strict reading: two lists of things."""
    form, parts = parse(text)
    candidates = fitting(parts[0], things)
    if form == "plain":
        return [candidates] * 2
    dx, dy = TOWARDS[parts[1]]
    if form == "place":
        along = {t: (t.x - width / 2) / width * dx + (t.y - height / 2) / height * dy for t in candidates}
        return [[t for t in candidates if along[t] > limit] for limit in (0, 0.09)]
    (anchor,) = fitting(parts[2], things)
    candidates = [t for t in candidates if t is not anchor]
    along = {t: (t.x - anchor.x) * dx + (t.y - anchor.y) * dy for t in candidates}
    across = {t: abs((t.x - anchor.x) * dy) + abs((t.y - anchor.y) * dx) for t in candidates}
    return [t for t in candidates if along[t] > 0], [t for t in candidates if along[t] > max(across[t], 5)]


def test_each_expression_means_its_ref_and_nothing_else(made):
    forms = Counter()
    for ref in made.refs:
        things = made.things[ref["image_id"]]
        (own,) = [thing for thing in things if thing.entry["id"] == ref["ann_id"]]
        for text in (s["sent"] for s in ref["sentences"]):
            for meaning in readings(text, things, *own.image.size):
                assert meaning == [own], (ref, text)
            forms[parse(text)[0]] += 1
    assert set(forms) == set(FORMS) and min(forms.values()) >= 10


def test_expressions_of_several_shapes_or_none(tmp_path):
    """Read from gRefCOCO's files by the same small reader: which things each expression names."""
    made = made_shapes()
    result = make(tmp_path, *arguments(), "--generalised")
    assert result.returncode == 0, result.stderr
    refs = json.loads((tmp_path / "external/refer/data/grefcoco/grefs(unc).json").read_text())
    single = [{**ref, "ann_id": ref["ann_id"][0]} for ref in refs if len(ref["ann_id"]) == 1 and not ref["no_target"]]
    told = {(ref["ann_id"], s["sent"]) for ref in made.refs for s in ref["sentences"]}
    assert {(ref["ann_id"], s["sent"]) for ref in single for s in ref["sentences"]} == told
    kinds, plurals = Counter(), {"crosses" if kind == "cross" else f"{kind}s": kind for kind in KINDS.split("|")}
    for ref in (ref for ref in refs if len(ref["ann_id"]) > 1 or ref["no_target"]):
        things, (sentence,) = made.things[ref["image_id"]], ref["sentences"]
        phrases = re.split(" and ", re.sub(r"\b(the|all) ", "", sentence["sent"]))
        named = [fitting(plurals.get(phrase, phrase), things) for phrase in phrases]
        kinds["none" if ref["no_target"] else "pair" if len(phrases) == 2 else "plural"] += 1
        assert len(phrases) == 1 or all(len(each) == 1 for each in named), sentence
        expected = [thing.entry["id"] for each in named for thing in each] or [-1]
        assert sorted(ref["ann_id"]) == sorted(expected), sentence
    assert set(kinds) == {"none", "pair", "plural"} and min(kinds.values()) >= 8, kinds


def test_two_to_four_shapes_of_different_colours(made):
    assert {len(things) for things in made.things.values()} == {2, 3, 4}
    for things in made.things.values():
        assert len({t.colour or t.kind for t in things}) == len(things)  # kinds in grayscale
