"""What an expression means: for each thing of a scene, whether it is the one, is not, or is too close to call.

Every function returns a list with True, False or None (too close to call) per thing. True holds under the strictest
reading of the words and False under the loosest, so that nobody need guess where "right of" ends.
"""

from dataclasses import dataclass

from tools.shapes.scenes import Thing

SIDES = ("left", "right", "top", "bottom")
GAP = 0.07  # of the longer side: how far ahead the left-most must be of the next
SLACK = 0.03  # of the longer side: how far on the wrong side a thing must be not to count as "right of"
Truth = list[bool | None]


@dataclass(frozen=True)
class View:
    """The things that an expression may mean, and the size of their picture in pixels."""

    things: list[Thing]
    height: int
    width: int

    @property
    def longest(self) -> int:
        return max(self.height, self.width)


@dataclass(frozen=True)
class Phrase:
    """Attributes of a thing; None where nothing is said. `noun` is a kind, or "shape" or "one"."""

    size: str | None
    colour: str | None
    kind: str | None
    noun: str

    @property
    def adjectives(self) -> list[str]:
        return [word for word in (self.size, self.colour) if word]

    def __str__(self) -> str:
        return " ".join([*self.adjectives, self.noun])

    def fits(self, thing: Thing) -> bool:
        return (
            self.size in (None, thing.size) and self.colour in (None, thing.colour) and self.kind in (None, thing.kind)
        )


def meant(truth: Truth) -> int | None:
    """The index of the one thing that is meant; None if none is, several are, or one is too close to call."""
    return truth.index(True) if None not in truth and truth.count(True) == 1 else None


def described(view: View, phrase: Phrase) -> Truth:
    """ "small red circle" """
    return [phrase.fits(thing) for thing in view.things]


def on_side(view: View, phrase: Phrase, side: str) -> Truth:
    """ "circle on the left": in the outer 40% of the picture; not, if clearly in the other half."""
    extent = view.width if side in ("left", "right") else view.height

    def judge(thing: Thing) -> bool | None:
        share = _towards(thing, side) / extent % 1  # 1 at that side, 0 at the other
        return True if share > 0.6 else False if share < 0.45 else None

    return [phrase.fits(thing) and judge(thing) for thing in view.things]


def extreme(view: View, phrase: Phrase, side: str, rank: int = 1) -> Truth:
    """ "left-most circle", or for rank 2 "second circle from the left": of those that the phrase fits."""
    order = sorted(
        (t for t in range(len(view.things)) if phrase.fits(view.things[t])),
        key=lambda t: -_towards(view.things[t], side),
    )
    along = [_towards(view.things[t], side) for t in order]
    gaps = [before - after for before, after in zip(along, along[1:], strict=False)]
    truth: Truth = [False] * len(view.things)
    if len(order) < rank or any(gap < GAP * view.longest for gap in gaps[max(0, rank - 2) : rank]):
        return [None] * len(view.things)
    truth[order[rank - 1]] = True
    return truth


def beside(view: View, phrase: Phrase, side: str, anchor: Phrase) -> Truth:
    """ "circle right of the big star": more to the right than up or down; not, if it is not to the right at all."""
    base = meant(described(view, anchor))
    if base is None:
        return [None] * len(view.things)
    start = view.things[base]

    def judge(thing: Thing) -> bool | None:
        along = _towards(thing, side) - _towards(start, side)
        across = abs(thing.y - start.y) if side in ("left", "right") else abs(thing.x - start.x)
        if along > max(GAP * view.longest, across):
            return True
        return False if along < -SLACK * view.longest else None

    return [thing is not start and phrase.fits(thing) and judge(thing) for thing in view.things]


def closest(view: View, phrase: Phrase, anchor: Phrase) -> Truth:
    """ "circle closest to the big star": of those that the phrase fits, the star itself left out."""
    base = meant(described(view, anchor))
    if base is None:
        return [None] * len(view.things)
    start = view.things[base]
    distance = {
        i: ((thing.x - start.x) ** 2 + (thing.y - start.y) ** 2) ** 0.5
        for i, thing in enumerate(view.things)
        if thing is not start and phrase.fits(thing)
    }
    order = sorted(distance, key=distance.__getitem__)
    if len(order) > 1 and distance[order[1]] - distance[order[0]] < 2 * GAP * view.longest:
        return [None] * len(view.things)
    return [i in order[:1] for i in range(len(view.things))]


def _towards(thing: Thing, side: str) -> float:
    """The thing's position, growing towards `side`."""
    return {"left": -thing.x, "right": thing.x, "top": -thing.y, "bottom": thing.y}[side]
