"""Controls for language: what an evaluation loses if the expressions are not what they were (`--expressions`).

A model that finds objects without reading loses nothing. The words are changed in the text, and the text is encoded as
any other, so that a control holds for every tokeniser.
"""

import random
import re
from dataclasses import dataclass

from utils.options import option

CONTROLS = ("rotated", "shuffled", "first_k", "dropped")
FIRST_K = 2
# Words that name neither a thing nor a place nor a property.
FUNCTION_WORDS = frozenset(
    "a an the this that these those of in on at to by for from with without and or but as is are was be being been "
    "has have had it its he his she her they their him them who which what there then than some any s".split()
)


@dataclass(frozen=True)
class Control:
    """What becomes of the expressions; `seed` decides what is drawn, for each expression anew, from its number."""

    expressions: str | None = option(
        None,
        "control: also judge each expression against the next ref of its image (rotated), or with its words in another "
        "order (shuffled), cut to its first words (first_k), or without one content word (dropped); "
        "--output_dir gets that result",
        choices=CONTROLS,
    )
    rotate_expressions: bool = option(False, "the same as --expressions rotated")
    first_k: int | None = option(
        None, f"words that --expressions first_k leaves (default: {FIRST_K})", limits=(1, 1000)
    )
    seed: int = 1

    @property
    def kind(self) -> str | None:
        """One of CONTROLS; None for none."""
        return "rotated" if self.rotate_expressions else self.expressions

    @property
    def words(self) -> int:
        """How many words first_k leaves."""
        return self.first_k or FIRST_K

    @property
    def marks(self) -> list[str]:
        """For the names of folders and rows: "rotated", "shuffled", "first_2", and a seed that is not the default."""
        drawn = self.kind in ("shuffled", "dropped") and self.seed != Control.seed
        kind = f"first_{self.words}" if self.kind == "first_k" else self.kind
        return [kind, *[f"seed{self.seed}"] * drawn] if kind else []

    @property
    def told(self) -> str:
        """What was done to the expressions, as a sentence about them ends."""
        return {
            "rotated": "judged against the next ref of their image",
            "shuffled": f"read with their words in another order (seed {self.seed})",
            "first_k": f"cut to their first {'word' if self.words == 1 else f'{self.words} words'}",
            "dropped": f"read without one of their content words (seed {self.seed})",
        }[self.kind]

    def reword(self, index: int, expression: str) -> str:
        """Expression number `index` of a split, changed. The same for a seed, whatever process calls it.

        shuffled: the words (runs of letters and digits) in an order that is not theirs, if they have another; what
        stands between them stays. first_k: up to the end of word k. dropped: without one word that is not of
        FUNCTION_WORDS, and without the separator after it; an expression of a single word keeps it.
        """
        parts = re.split(r"(\W+)", expression.strip())  # words at even places; the first and the last may be empty
        places = [place for place in range(0, len(parts), 2) if parts[place]]
        words, drawn = [parts[place] for place in places], random.Random(f"{self.seed} {index}")
        if self.kind == "first_k" and len(words) > self.words:
            del parts[places[self.words - 1] + 1 :]
        elif self.kind == "shuffled" and len(set(words)) > 1:
            order = list(words)
            while order == words:
                drawn.shuffle(order)
            for place, word in zip(places, order, strict=True):
                parts[place] = word
        elif self.kind == "dropped" and len(words) > 1:
            content = [place for place in places if parts[place].lower() not in FUNCTION_WORDS]
            if content:
                start = drawn.choice(content)
                start -= start == len(parts) - 1  # the last word goes with the separator before it
                del parts[start : start + 2]
        else:
            return expression
        return "".join(parts)
