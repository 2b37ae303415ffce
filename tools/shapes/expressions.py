"""Referring expressions: proposed at random, kept only if they mean one thing of the scene and no other.

What an expression means is a Truth: for each thing True, False or None (too close to call). True holds under the
strictest reading of the words and False under the loosest, so that nobody need guess where "right of" ends.
"""

from dataclasses import dataclass
from random import Random

import numpy as np

from tools.shapes.scenes import COLOURS, KINDS, SIZES, Thing

SIDES = ("left", "right", "top", "bottom")
GAP = 0.07  # of the longer side: how far right of its anchor a thing must be
SLACK = 0.03  # of the longer side: how far on the wrong side a thing must be not to count as "right of"
PLACE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
BESIDE = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
TEMPLATES = {
    "described": ("{phrase}", "{phrase}", "the {phrase}"),
    "on_side": ("{phrase} {place}", "the {phrase} {place}"),
    "beside": ("{phrase} {beside} the {anchor}", "the {phrase} {beside} the {anchor}"),
}
SHARES = {"described": 70, "on_side": 20, "beside": 10}  # percent of each kind of expression among the proposals
ATTEMPTS = 24  # for each expression wanted
PAIRS = ("{} and {}", "the {} and the {}")
PLURALS = ("all {}", "the {}")
NOTHING = ("{}", "the {}")
Truth = list[bool | None]


@dataclass(frozen=True)
class View:
    """The things that an expression may mean, and the size of their image in pixels."""

    things: list[Thing]
    height: int
    width: int


@dataclass(frozen=True)
class Phrase:
    """Attributes of a thing; None where nothing is said. `noun` is a kind, or "shape" or "one"."""

    size: str | None
    colour: str | None
    kind: str | None
    noun: str

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.noun) if word)

    def fits(self, thing: Thing) -> bool:
        """Whether nothing that is said is wrong of the thing."""
        return all(getattr(self, name) in (None, getattr(thing, name)) for name in ("size", "colour", "kind"))


def expressions(rng: Random, view: View, target: int, count: int) -> list[str]:
    """Up to `count` different expressions, lower-case, each of which means the thing `target` alone.

    Returns [] where no attempt was unambiguous.
    """
    found: list[str] = []
    everything = _phrase(rng, view.things[target], everything=True)
    for _ in range(ATTEMPTS * count):
        phrase = _phrase(rng, view.things[target])
        text = _propose(rng, view, target, phrase, rng.choices(list(SHARES), list(SHARES.values()))[0])
        if text is not None and text not in found:
            found.append(text)
        if len(found) == count:
            return found
    if not found and meant(described(view, everything)) == target:
        found.append(_propose(rng, view, target, everything, "described"))
    return found


def several(rng: Random, view: View) -> tuple[str, list[int]] | None:
    """An expression for more than one thing, and these; None where the attempt fails."""
    kind = rng.choice(view.things).kind
    alike = [index for index, thing in enumerate(view.things) if thing.kind == kind]
    if len(alike) > 1:
        return rng.choice(PLURALS).format(kind + ("es" if kind.endswith("s") else "s")), alike
    pair = sorted(rng.sample(range(len(view.things)), 2))
    phrases = [_phrase(rng, view.things[index]) for index in pair]
    if [meant(described(view, phrase)) for phrase in phrases] != pair:
        return None
    return rng.choice(PAIRS).format(*phrases), pair


def nothing(rng: Random, view: View) -> tuple[str, list[int]] | None:
    """An expression that no thing of the scene fits, though single words of it may; None where the attempt fails."""
    colour = rng.choice(list(COLOURS)) if view.things[0].colour else None
    phrase = _phrase(rng, Thing(rng.choice(KINDS), colour, rng.choice(list(SIZES)), 0, 0, np.empty(0)))
    return None if any(described(view, phrase)) else (rng.choice(NOTHING).format(phrase), [])


def _phrase(rng: Random, thing: Thing, everything: bool = False) -> Phrase:
    """Some of the attributes of a thing, always its colour, which grayscale images lack."""
    says_size = everything or rng.random() < 0.4
    says_kind = everything or rng.random() < 0.75
    kind = thing.kind if says_kind or thing.colour is None else None  # "shape" alone might be the bar
    return Phrase(thing.size if says_size else None, thing.colour, kind, kind or rng.choice(("shape", "one")))


def _propose(rng: Random, view: View, target: int, phrase: Phrase, kind: str) -> str | None:
    """An expression of the given kind about `phrase`; None if it does not mean `target` alone."""
    start = view.things[rng.randrange(len(view.things))]
    anchor = _phrase(rng, start, everything=rng.random() < 0.5)
    if kind == "beside":  # the side on which the target lies is the only one worth a proposal
        side = max(reversed(SIDES), key=lambda side: _towards(view.things[target], side) - _towards(start, side))
        truth = beside(view, phrase, side, anchor)
    else:
        side = rng.choice(SIDES)
        truth = on_side(view, phrase, side) if kind == "on_side" else described(view, phrase)
    if meant(truth) != target:
        return None
    template = rng.choice(TEMPLATES[kind])
    return template.format(phrase=phrase, place=PLACE[side], beside=BESIDE[side], anchor=anchor)


def meant(truth: Truth) -> int | None:
    """The index of the one thing that is meant; None if none is, several are, or one is too close to call."""
    return truth.index(True) if None not in truth and truth.count(True) == 1 else None


def described(view: View, phrase: Phrase) -> Truth:
    """ "small red circle" """
    return [phrase.fits(thing) for thing in view.things]


def on_side(view: View, phrase: Phrase, side: str) -> Truth:
    """ "circle on the left": in the outer 40% of the image; not, if clearly in the other half."""
    extent = view.width if side in ("left", "right") else view.height

    def judge(thing: Thing) -> bool | None:
        share = _towards(thing, side) / extent % 1  # 1 at that side, 0 at the other
        return True if share > 0.6 else False if share < 0.45 else None

    return [phrase.fits(thing) and judge(thing) for thing in view.things]


def beside(view: View, phrase: Phrase, side: str, anchor: Phrase) -> Truth:
    """ "circle right of the big star": more to the right than up or down; not, if it is not to the right at all."""
    base = meant(described(view, anchor))
    if base is None:
        return [None] * len(view.things)
    start, longest = view.things[base], max(view.height, view.width)

    def judge(thing: Thing) -> bool | None:
        along = _towards(thing, side) - _towards(start, side)
        across = abs(thing.y - start.y) if side in ("left", "right") else abs(thing.x - start.x)
        if along > max(GAP * longest, across):
            return True
        return False if along < -SLACK * longest else None

    return [thing is not start and phrase.fits(thing) and judge(thing) for thing in view.things]


def _towards(thing: Thing, side: str) -> float:
    """The thing's position, growing towards `side`."""
    return {"left": -thing.x, "right": thing.x, "top": -thing.y, "bottom": thing.y}[side]
