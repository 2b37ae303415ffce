"""How every script's `--help` looks: filled to the terminal's width, with examples that can be copied from it."""

import argparse
import re
import textwrap


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
