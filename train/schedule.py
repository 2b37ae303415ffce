"""Learning rate as a function of the step. SPEC sections 8 and 9."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, from `end` (the cosine schedule: from 0), then a polynomial or half a cosine down to `end`.

    `factor(step)` is a multiple of the rate `base`, so that parameter groups of other base rates share one schedule.
    """

    base: float = 1e-5
    end: float = 0.0
    steps: int = 400_000
    warmup: int = 40_000  # the reference keeps 40,000 whatever the number of steps; ours is a tenth of it
    power: float = 0.9
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
