"""House rules that ruff does not know (CONTRIBUTING.md): sizes, docstrings, imports, things left behind."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40  # from `def` to the last line, the docstring's lines not counted
USERS_FOLDERS = {"data", "external", "weights"}  # only their README is ours
GENERATED_FOLDERS = {"demo", "runs"}
PACKAGES = ("models", "utils", "eval", "train", "prepare")
COMMANDS = {"models/convert.py"}  # `python -m models.convert`: wiring, like a script at the top; no module imports it

# folder -> (packages of ours that it may not import, modules of theirs that it may)
IMPORT_RULES = {
    "utils": ({"models", "prepare", "eval", "train", "tools", "tests"}, set()),
    "prepare": ({"models", "eval", "train", "tools", "tests"}, set()),
    "models": ({"prepare", "eval", "train", "tools", "tests"}, set()),
    "eval": ({"prepare", "train", "tools", "tests"}, set()),
    "train": ({"prepare", "tools", "tests"}, set()),
}

# The words are put together here so that this file does not hold them.
LEFT_BEHIND = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
REGISTRY = re.compile(r"\b(py" + r"pi\.org|python" + r"hosted\.org|download\.py" + r"torch\.org|ana" + r"conda\.)")
MACHINE_PATH = re.compile(r"(?<![\w.*}/-])/(wo" + r"rk|ro" + r"ot|ho" + r"me|Us" + r"ers)/")


def our_files(*suffixes: str) -> list[Path]:
    """Every file of ours with one of `suffixes`: none of hidden folders, virtual environments and users' data."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in ROOT.iterdir():
        if not folder.is_dir() or folder.name.startswith(".") or (folder / "pyvenv.cfg").exists():
            continue
        if folder.name in USERS_FOLDERS:
            found.append(folder / "README.md")
        elif folder.name not in GENERATED_FOLDERS:
            found += folder.rglob("*")
    return sorted(path for path in found if path.suffix in suffixes and path.is_file())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """(name, lines without the docstring) of each function and method, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, length


def undocumented(source: str) -> list[str]:
    """Public functions and classes of a module without a docstring. A script's `main` is described by its module."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    nodes = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    public = [node for node in nodes if not node.name.startswith("_") and node.name != "main"]
    return [node.name for node in public if not ast.get_docstring(node)]


def imported(source: str, package: str) -> set[str]:
    """Dotted names that a module of `package` imports, anywhere in it; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, two are the root, where our packages stand.
            base = ".".join(filter(None, (package if node.level == 1 else "", node.module)))
            names |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    return names


def forbidden_imports(source: str, folder: str) -> list[str]:
    refused, allowed = IMPORT_RULES[folder]
    scripts = {path.stem for path in ROOT.glob("*.py")}
    names = sorted(name for name in imported(source, folder) if name.split(".")[0] in refused | scripts)
    return [name for name in names if not any(name == ok or name.startswith(f"{ok}.") for ok in allowed)]


def left_behind(source: str) -> list[str]:
    """Marks of unfinished work in a Python source: words in it, debugger calls and imports."""
    found = [match[0] for match in LEFT_BEHIND.finditer(source)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "breakpoint":
            found.append("breakpoint()")
    return found + sorted(imported(source, "") & {"pdb", "ipdb", "pdb.set_trace", "ipdb.set_trace"})


PYTHON_FILES = our_files(".py")
PACKAGE_FILES = [path for path in PYTHON_FILES if path.relative_to(ROOT).parts[0] in PACKAGES]


def test_the_walk_finds_the_code():
    names = {name_of(path) for path in our_files(".py", ".md")}
    assert {"utils/errors.py", "tests/test_style.py", "CONTRIBUTING.md", "data/README.md"} <= names
    assert not [name for name in names if "site-packages" in name]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_sizes(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert [found for found in function_lengths(source) if found[1] > MAX_FUNCTION_LINES] == []


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_nothing_left_behind(path):
    assert left_behind(path.read_text()) == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_public_names_are_documented(path):
    assert undocumented(path.read_text()) == []


@pytest.mark.parametrize("path", [path for path in PACKAGE_FILES if name_of(path) not in COMMANDS], ids=name_of)
def test_imports_point_one_way(path):
    source, folder = path.read_text(), path.relative_to(ROOT).parts[0]
    assert forbidden_imports(source, folder) == []
    commands = tuple(name.removesuffix(".py").replace("/", ".") for name in COMMANDS)
    assert [name for name in imported(source, folder) if name.startswith(commands)] == []


@pytest.mark.parametrize("path", our_files(".py", ".md"), ids=name_of)
def test_no_registry_and_no_machine_path(path):
    text = path.read_text()
    assert [match[0] for rule in (REGISTRY, MACHINE_PATH) for match in rule.finditer(text)] == []


def test_the_rules_see_what_they_forbid():
    source = 'def long():\n    """Two\n    lines."""\n' + "    x = 1\n" * 40
    assert list(function_lengths(source)) == [("long", 41)]
    assert undocumented("def f(): pass\nclass A: pass\ndef _g(): pass\ndef main(): pass") == ["f", "A"]
    assert left_behind("# TO" + "DO: more\nbreakpoint()\nimport pdb") == ["TO" + "DO", "breakpoint()", "pdb"]
    assert REGISTRY.search("see https://py" + "pi.org/simple") and MACHINE_PATH.search('open("/wo' + 'rk/x")')
    assert not MACHINE_PATH.search("my/wo" + "rk/x")
