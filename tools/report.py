"""Findings on the screen: what is right, what to know, what to fix."""

from collections.abc import Callable, Iterable

from utils.errors import InputError, one_line

SHOWN = 10  # of many faults of one kind


class Report:
    """Prints what is found, as it is found, and counts the kinds of faults."""

    def __init__(self):
        self.faults = 0

    def ok(self, text: str) -> None:
        """What is as it should be."""
        print(f"  ok     {text}", flush=True)

    def note(self, text: str, examples: Iterable[object] = ()) -> None:
        """What the user should know and may leave as it is; of `examples` the first SHOWN."""
        print(f"  note   {one_line(text)}", flush=True)
        self._show(examples)

    def fault(self, text: str, examples: Iterable[object] = ()) -> None:
        """What has to be fixed; of `examples` the first SHOWN."""
        self.faults += 1
        print(f"  FAULT  {one_line(text)}", flush=True)
        self._show(examples)

    @staticmethod
    def _show(examples: Iterable[object]) -> None:
        examples = list(examples)
        for example in examples[:SHOWN]:
            print(f"           {one_line(example)}")
        if len(examples) > SHOWN:
            print(f"           and {len(examples) - SHOWN:,} more")

    def attempt(self, action: Callable):
        """What `action` returns; None after a fault, if it raises InputError."""
        try:
            return action()
        except InputError as error:
            return self.fault(str(error))
