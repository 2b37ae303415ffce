"""What every script does alike: flags, help, one line for an error, exit codes, a progress bar."""

import argparse
import errno
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

from tqdm import tqdm

from utils.errors import InputError, one_line

EXIT_USER_ERROR = 2


class _Outlet(io.FileIO):
    """A standard stream. What nobody reads any more is dropped; only a full disk under standard output is an error."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self._lost = {errno.EPIPE, errno.EIO} if self.isatty() else {errno.EPIPE}  # EIO: the terminal was closed
        self._told = descriptor == 2  # there is no place to tell of errors of standard error

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if self._told or error.errno in self._lost:
                return len(data)
            self._told = True  # what is still in the buffer would raise it again at exit
            raise OSError(error.errno, error.strerror, "standard output") from None


def settle_streams() -> None:
    """Make standard streams safe to use: open ones that were closed (`>&-`), and let a lost reader stop nothing.

    A script goes on without a reader, so that `| head` or a lost connection costs no work. Characters that the terminal
    cannot show are escaped. A stream that was replaced, as tests do, stays.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file to be opened would take its place
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="backslashreplace")
            continue
        if stream:
            stream.flush()
        by_line = stream is None or stream.line_buffering or stream.write_through
        buffer = io.BufferedWriter(_Outlet(descriptor))
        encoding = stream.encoding if stream else "utf-8"
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=by_line))


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs, keeps indented lines as commands, and adds each default that says something."""

    def __init__(self, prog: str, **options):
        super().__init__(prog, **{"max_help_position": 26, **options})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n\s*\n", text.replace("\\\n", "").strip("\n"))
        return "\n\n".join(
            commands(paragraph, width) if paragraph.startswith(" ") else textwrap.fill(paragraph, width)
            for paragraph in paragraphs
        )

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        numbers = {int: "N", float: "X"}
        return numbers.get(action.type) or super()._get_default_metavar_for_optional(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {values}"  # the values once, however many spellings there are

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        silent = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        if silent or action.required or not action.option_strings or "default" in said:
            return said
        return f"{said} (default: %(default)s)"


def commands(lines: str, width: int) -> str:
    """Command lines folded as a shell reads them; the comment of one that has to be folded stands above it."""
    shown = []
    for line in lines.splitlines():
        command, _, comment = (part.rstrip() for part in line.partition("  # "))
        if len(line) <= width:
            shown.append(line)
            continue
        # A flag stays with its value, and what is quoted together.
        command = re.sub(r'"[^"]*"', lambda quoted: quoted[0].replace(" ", "\0"), command)
        command = re.sub(r"(\s-\S+) +(?=[^-\s])", "\\1\0", command)
        unbroken = {"break_long_words": False, "break_on_hyphens": False}
        folded = textwrap.wrap(command, width - 2, subsequent_indent=" " * 8, **unbroken)
        shown += [f"    # {comment.strip()}"] if comment else []
        shown.append(" \\\n".join(folded).replace("\0", " "))
    return "\n".join(shown)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the help of `HelpFormatter` and errors of one line."""

    def __init__(self, **options):
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: error: {message} (see {self.prog} --help)\n"
        self.exit(EXIT_USER_ERROR, text if first_to_fail() else None)


def check_limits(options: argparse.Namespace, limits: dict[str, tuple[float, float]]) -> None:
    """Raise InputError for a flag whose value is not from the least to the most of `limits`, or not a number."""
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if not least <= value <= most:  # nan is not, either
            raise InputError(f"--{name} {value}: must be from {least:g} to {most:g}")


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main`; turn an InputError or an operating-system error into one line and exit code 2."""
    settle_streams()
    try:
        code = main() or 0
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
    sys.exit(code)


def report(error: BaseException) -> int:
    """Say on one line what the user can do about `error`; returns the exit code. Raises `error` if it is a bug.

    Under torchrun the first process that fails speaks: in the others it is mostly the same.
    """
    code, message = EXIT_USER_ERROR, error
    if isinstance(error, KeyboardInterrupt):
        code, message = 130, "interrupted"
    elif isinstance(error, OSError):  # a full disk, a read-only folder, a vanished mount
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        message = f"{name}{error.strerror or error}"
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        message = "out of memory: free some, or pass a smaller batch or fewer processes"
    elif not isinstance(error, InputError):
        raise error
    messages = error.args if isinstance(error, InputError) else (message,)
    for text in messages if first_to_fail() else ():
        program = os.path.basename(sys.argv[0]) or "restr"  # noqa: PTH119
        print(f"{program}: error: {one_line(text)}", file=sys.stderr)
    return code


def first_to_fail() -> bool:
    """Whether no other process of this torchrun has asked this before; True outside of torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    try:
        port, limit = int(os.environ["MASTER_PORT"]), timedelta(seconds=5)
        store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=limit)
        return store.add(f"restr_failed_{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except (KeyError, RuntimeError, ValueError):  # torchrun has gone
        return True


def progress_bar(**options) -> tqdm:
    """A tqdm bar on standard error; in a scheduler's log a line each half minute instead of ten a second."""
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 30, **options)


def size(text: str) -> tuple[int, int]:
    """ "480,640" or "480" to (height, width) in pixels, for argparse."""
    parts = [int(part) for part in text.split(",")]
    if len(parts) > 2 or min(parts) < 1:
        raise ValueError
    return parts[0], parts[-1]
