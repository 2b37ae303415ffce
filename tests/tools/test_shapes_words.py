"""The expressions of the shapes, read by a small reader of English that shares no code with their writer."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from tests.support.shapes import RGB, colour_of, made_shapes, masks_of, queries
from tools.shapes import meanings
from tools.shapes.meanings import Phrase, View
from tools.shapes.scenes import Thing


@pytest.fixture(scope="module", params=["easy", "full"])
def made(request, tmp_path_factory):
    return made_shapes(request.param, tmp_path_factory)


BETWEEN = {"easy": 0.39, "full": 0.22}  # share of the image's side that no small shape has and every big one


@dataclass(eq=False)
class Seen:
    """A thing as somebody sees it who has the picture and the outlines."""

    kind: str
    colour: str | None
    size: str
    x: float
    y: float


def look(made):
    """image id -> {annotation id: Seen}, with width and height of the images."""
    names, masks = {c["id"]: c["name"] for c in made.instances["categories"]}, masks_of(made)
    sizes = {i["id"]: (i["width"], i["height"]) for i in made.instances["images"]}
    seen = {}
    for a in made.instances["annotations"]:
        x, y, w, h = a["bbox"]
        size = "big" if max(w, h) > BETWEEN[made.level] * max(sizes[a["image_id"]]) else "small"
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
