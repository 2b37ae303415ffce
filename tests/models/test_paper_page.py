"""docs/PAPER.md names files, functions and tests: each exists, and each statement names its code and its test."""

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "docs/PAPER.md"
FILE = re.compile(r"`([\w./-]+\.(?:py|md|sh))`")
NAMED = re.compile(r"`([\w./-]+\.py)`:`([\w.]+)`")  # `file`:`function`
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)\)")
STATEMENTS = "| statement | code | test | deviation |"


def defined(path: Path) -> set[str]:
    """Functions, classes and constants of a module, and Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def faults(page: str) -> list[str]:
    """What a page names that is not there."""
    files = [ROOT / name for name in FILE.findall(page)] + [PAGE.parent / name for name in LINK.findall(page)]
    missing = [str(path) for path in files if not path.is_file()]
    named = [(file, name) for file, name in NAMED.findall(page) if (ROOT / file).is_file()]
    return missing + [f"{file}: {name}" for file, name in named if name not in defined(ROOT / file)]


def statements(page: str) -> list[list[str]]:
    """Cells of the rows of every table of statements."""
    tables = page.split(STATEMENTS)[1:]
    rows = [line for table in tables for line in table.strip().split("\n\n")[0].splitlines()[1:]]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_everything_named_exists():
    assert faults(PAGE.read_text()) == []


def test_each_statement_names_its_code_and_its_tests():
    rows = statements(PAGE.read_text())
    assert len(rows) > 30
    for row in rows:
        assert len(row) == 4, row
        for cell in row[1:3]:
            assert all(NAMED.fullmatch(part) for part in cell.split(", ")), cell
        assert all(name.startswith("test_") for _, name in NAMED.findall(row[2])), row
        assert row[3], row


def test_wrong_names_are_found():
    names = ["`models/decoder.py`:`Decoder`", "`models/decoder.py`:`CoarseToFineDecoder.backward`"]
    names += ["`models/coder.py`:`CoarseToFineDecoder`", "[the method](method.gif)", "`docs/PAPERS.md`"]
    assert [len(faults(name)) for name in names] == [1] * len(names)


def test_each_change_that_extending_shows_fits_this_code():
    """Context and removed lines of each hunk stand in the file it names, once."""
    page, fitting = (ROOT / "docs/EXTENDING.md").read_text(), 0
    for diff in re.findall(r"```diff\n(.*?)```", page, re.S):
        for part in re.split(r"^# (?=\S+\n@@)", diff, flags=re.M)[1:]:
            file, changes = part.split("\n", 1)
            code = "\n" + (ROOT / file).read_text()
            for hunk in re.split(r"^@@.*\n", changes, flags=re.M)[1:]:
                old = "".join(line[1:] + "\n" for line in hunk.splitlines() if not line.startswith("+"))
                assert code.count("\n" + old) == 1, f"{file}:\n{old}"
                fitting += 1
    assert fitting == page.count("\n@@")
