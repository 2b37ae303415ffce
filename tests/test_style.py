"""No file of ours names a package host or a path of one machine. `make lint` holds the other rules of the house."""

import re
from pathlib import Path

from tests.conftest import ROOT

FOLDERS = "benchmarks docs eval models prepare tests tools train utils .ci .github".split()

# The words are put together here so that this file does not hold them.
PACKAGE_HOST = r"\b(?:py" + r"pi\.org|python" + r"hosted\.org|download\.py" + r"torch\.org|ana" + r"conda\.)"
MACHINE_PATH = r"(?<![\w.*}/-])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me|Us" + r"ers)/"


def our_files(*suffixes: str) -> list[Path]:
    """Every file of ours with one of `suffixes`, without those of users' folders and virtual environments."""
    found = [*ROOT.glob("*"), *ROOT.glob("*/README.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*"))]
    return sorted({path for path in found if path.suffix in suffixes and path.is_file()})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_package_host_and_no_machine_path():
    files = our_files(".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml")
    assert {"utils/errors.py", "tests/test_style.py", "data/README.md"} <= {name_of(path) for path in files}
    assert re.search(PACKAGE_HOST, "https://py" + "pi.org/simple") and re.search(MACHINE_PATH, '"/wo' + 'rk/x"')
    found = {name_of(path): re.findall(f"{PACKAGE_HOST}|{MACHINE_PATH}", path.read_text()) for path in files}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_the_table_of_promises_names_files():
    names = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "tests/README.md").read_text())
    assert len(names) > 20 and [name for name in names if not (ROOT / "tests" / name).exists()] == []
