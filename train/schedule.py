"""Learning rate as a function of the step. Paper section 4.1."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, from `end` (the cosine schedule: from 0), then a polynomial or half a cosine down to `end`.

    `factor(step)` is a multiple of the rate `base`, so that parameter groups of other base rates share one schedule.
    """

    base: float
    end: float
    steps: int
    warmup: int
    power: float
    cosine: bool = False

    def factor(self, step: int) -> float:
        """Multiple of the base rate at the `step`-th update, counted from 0."""
        floor = self.end / self.base
        if step < self.warmup:
            if self.cosine:  # the authors' code means this, and computes step + 1 / warmup by a slip
                return (step + 1) / self.warmup
            return floor + (1 - floor) * step / self.warmup
        t = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        falling = 0.5 * (1 + math.cos(math.pi * t)) if self.cosine else (1 - t) ** self.power
        return floor + (1 - floor) * falling
