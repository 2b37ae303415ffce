"""Referring expressions: proposed at random, kept only if they mean one thing of the scene and no other."""

from random import Random

from tools.shapes import meanings
from tools.shapes.meanings import SIDES, Phrase, View, meant

MOST = {"left": "left-most", "right": "right-most", "top": "highest", "bottom": "lowest"}
PLACE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
BESIDE = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}

# For each kind of expression and style, ways to say it. {a} and {the} are the phrase with its article.
SHORT = {
    "described": ("{phrase}", "{phrase}", "{the}"),
    "on_side": ("{phrase} {place}", "{the} {place}"),
    "extreme": ("{most} {phrase}", "{the_most}"),
    "second": ("second {phrase} from the {side}", "the second {phrase} from the {side}"),
    "beside": ("{phrase} {beside} the {anchor}", "{the} {beside} the {anchor}"),
    "closest": ("{phrase} closest to the {anchor}", "{the} closest to the {anchor}"),
}
SENTENCE = {
    "described": ("there is {a} lying on the ground", "{a} that was put on the ground", "{the} in this picture"),
    "on_side": ("{a} that is {place} of the picture", "{the} which lies {place} of the image"),
    "extreme": ("{the_most} in the whole picture", "of all of them it is {the_most}"),
    "second": ("it is the second {phrase} counted from the {side}",),
    "beside": ("{a} that is {beside} the {anchor}", "{the} lying somewhere {beside} the {anchor}"),
    "closest": ("{the} that is closest to the {anchor}", "{a} which lies closest to the {anchor}"),
}
# How often each kind is proposed. Easy scenes are told apart by colour, so the place is said now and then only.
EASY = (("described", "on_side", "beside"), (70, 20, 10))
FULL = (("described", "on_side", "extreme", "second", "beside", "closest"), (15, 20, 10, 4, 45, 6))
ATTRIBUTES_ONLY = (("described",), (100,))
ATTEMPTS = 24  # for each expression wanted


def expressions(
    rng: Random, view: View, target: int, level: str, count: int, full_sentences=False, place=True
) -> list[str]:
    """Up to `count` different expressions, lower-case, each of which means the thing `target` alone.

    `place=False` (RefCOCO+) says attributes only. Returns [] where no attempt was unambiguous.
    """
    all_said = _phrase(rng, view, target, level, everything=True)
    told_by_attributes = meant(meanings.described(view, all_said)) == target
    if not place and not told_by_attributes:
        return []
    weights = ATTRIBUTES_ONLY if not place else EASY if level == "easy" else FULL
    ways, found = SENTENCE if full_sentences else SHORT, []
    for _ in range(ATTEMPTS * count):
        phrase, kind = _phrase(rng, view, target, level), rng.choices(*weights)[0]
        text = _propose(rng, view, target, phrase, kind, ways)
        needed = level == "easy" or kind == "described" or sum(meanings.described(view, phrase)) > 1
        if needed and text is not None and text not in found:
            found.append(text)
        if len(found) == count:
            return found
    if not found and told_by_attributes:
        found.append(_propose(rng, view, target, all_said, "described", ways))
    return found


def _phrase(rng: Random, view: View, index: int, level: str, everything=False) -> Phrase:
    """Some of the attributes of a thing. Easy scenes always name the colour, gray ones never."""
    thing = view.things[index]
    says_size = everything or rng.random() < 0.4
    says_colour = everything or level == "easy" or rng.random() < 0.6
    says_kind = everything or rng.random() < 0.75
    colour = thing.colour if says_colour else None
    kind = thing.kind if says_kind or colour is None else None  # "shape" alone might be the bar
    return Phrase(thing.size if says_size else None, colour, kind, kind or rng.choice(("shape", "one")))


def _propose(rng: Random, view: View, target: int, phrase: Phrase, kind: str, ways: dict) -> str | None:
    """An expression of the given kind about `phrase`; None if it does not mean `target` alone."""
    start = rng.randrange(len(view.things))
    anchor = _phrase(rng, view, start, "easy", everything=rng.random() < 0.5)
    side = _side_from(view, start, target) if kind == "beside" else rng.choice(SIDES)
    truth = {
        "described": lambda: meanings.described(view, phrase),
        "on_side": lambda: meanings.on_side(view, phrase, side),
        "extreme": lambda: meanings.extreme(view, phrase, side),
        "second": lambda: meanings.extreme(view, phrase, side, rank=2),
        "beside": lambda: meanings.beside(view, phrase, side, anchor),
        "closest": lambda: meanings.closest(view, phrase, anchor),
    }[kind]
    if meant(truth()) != target:
        return None
    way = rng.choice(ways[kind])
    article = "an" if str(phrase)[0] in "aeiou" else "a"
    return way.format(
        phrase=phrase, a=f"{article} {phrase}", the=f"the {phrase}", the_most=f"the {MOST[side]} {phrase}",
        most=MOST[side], place=PLACE[side], side=side, beside=BESIDE[side], anchor=anchor,
    )  # fmt: skip


def _side_from(view: View, start: int, target: int) -> str:
    """The side of thing `start` on which `target` lies: the only one worth a proposal."""
    x, y = (getattr(view.things[target], axis) - getattr(view.things[start], axis) for axis in "xy")
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "bottom" if y > 0 else "top"
