"""A knob is one line: a dataclass field is the flag, its default, help and limits, and what --resume says of it."""

import dataclasses
import types
import typing
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
COUNT, COUNT_OR_0, POSITIVE = (1, 10**9), (0, 10**9), (0, 1e6)  # limits that many options share
MAX_CANVAS_SIDE = 8_192  # pixels; no model takes more (models.config.LARGEST, whose import takes PyTorch)
METAVARS = {int: "N", float: "X", Path: "PATH"}


def option(default: Any, help: str, *, limits: tuple = (), harmless: str = "", flag: str = "", **argparse) -> Any:
    """A dataclass field that is a flag of a script.

    Args: help, a noun phrase; limits, the least and the most value; harmless, why --resume may find another value than
    the run was started with (empty: only with --allow_changes); flag, its name where it is not the field's; argparse,
    `choices`, `metavar` and `type` of `add_argument`. The default `...` makes a flag that has to be given.
    """
    about = {"help": help, "limits": limits, "harmless": harmless, "flag": flag, "argparse": argparse}
    return dataclasses.field(default=default, metadata=about)


def flags_of(kind: type) -> Iterator[tuple[str, dataclasses.Field]]:
    """(flag without dashes, field) of a dataclass; a field that is no `option` is no flag."""
    for field in dataclasses.fields(kind):
        if "help" in field.metadata:
            yield field.metadata["flag"] or field.name, field


def add_options(group, kind: type) -> None:
    """Add the flags of a dataclass to a parser or a group of it."""
    hints = typing.get_type_hints(kind)
    for name, field in flags_of(kind):
        about, how = field.metadata, dict(field.metadata["argparse"])
        plain = hints[field.name]
        while inner := [part for part in typing.get_args(plain) if part is not types.NoneType]:  # of list[int] | None
            plain = inner[0]
        if plain is bool:
            how["action"] = "store_true"
        else:
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            how |= {"required": True} if default is ... else {"default": default}
            how.setdefault("type", within(plain, *about["limits"]) if about["limits"] else plain)
            how.setdefault("metavar", None if "choices" in how else METAVARS.get(plain))
        group.add_argument(f"--{name}", help=about["help"], **how)


def read_options(kind: type[T], args: Namespace, **known) -> T:
    """The dataclass with the values of its flags; `known`: fields whose values come from elsewhere."""
    values = vars(args)
    return kind(**{field.name: values[name] for name, field in flags_of(kind) if name in values} | known)


def size(text: str) -> tuple[int, int]:
    """A `type` for argparse: "480" to (480, 480) and "480,640" to (480, 640), height and width in pixels."""
    sides = [int(side) for side in text.split(",")]
    if len(sides) > 2 or not all(1 <= side <= MAX_CANVAS_SIDE for side in sides):
        raise ArgumentTypeError(f"{text!r} is not a side or HEIGHT,WIDTH of 1 to {MAX_CANVAS_SIDE} pixels")
    return sides[0], sides[-1]


def within(kind: type, least: float, most: float) -> Callable[[str], Any]:
    """A `type` for argparse: a number from `least` to `most`."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise ArgumentTypeError(f"{text}: must be a{' whole' * (kind is int)} number") from None
        if not least <= value <= most:  # nan is not, either
            raise ArgumentTypeError(f"{text}: must be from {least:g} to {most:g}")
        return value

    return convert
