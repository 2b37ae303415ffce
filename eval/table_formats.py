"""Tables of text as Markdown and as LaTeX."""

import re
from dataclasses import dataclass

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#!$&])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"\dag{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}


@dataclass(frozen=True)
class Table:
    """Unescaped text: a caption, one head, rows as long as it, the first `left` columns of which are words."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    left: int = 1


def markdown(tables: list[Table]) -> str:
    """The tables as Markdown, in which no text of theirs is markup."""
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    rule = [":--"] * table.left + ["--:"] * (len(table.head) - table.left)
    lines = [map(_escape_markdown, table.head), rule, *(map(_escape_markdown, row) for row in table.rows)]
    return f"{_escape_markdown(table.caption)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def latex(tables: list[Table]) -> str:
    """The tables as LaTeX floats for \\input, in which no text of theirs is a command; they need booktabs."""
    return "% \\usepackage{booktabs}\n" + "\n".join(map(_latex, tables))


def _latex(table: Table) -> str:
    columns = "l" * table.left + "r" * (len(table.head) - table.left)
    head, *rows = (" & ".join(map(_escape_latex, row)) + r" \\" for row in [table.head, *table.rows])
    lines = [
        r"\begin{table*}",
        r"\centering\small",
        rf"\caption{{{_escape_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"\(-(?=\d)", "($-$", escaped)  # a minus sign, not a hyphen
