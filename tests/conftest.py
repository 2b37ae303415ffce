"""What the tests share: where things are, the toy data set, and its prepared data."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests/data"  # numbers and files that the tests compare with
SHARED = ROOT.parent / "shared"  # photographs that cannot be passed on, and their numbers

needs_shared = pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="the real photographs are not there")


def pytest_configure() -> None:
    # A shell's `make test &` has SIGINT ignored, and so would the programs that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before torch is imported: toy models are slower on several threads, and pytest-xdist uses every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# The fixtures import what they need when they are used, so that no torch is imported before pytest_configure.
@pytest.fixture
def tiny(tmp_path) -> Path:
    """The folder of a toy data set in the real formats (tests/support/tiny_set.py)."""
    from tests.support.tiny_set import make_tiny_set

    return make_tiny_set(tmp_path / "set")


@pytest.fixture
def build(monkeypatch, capsys):
    """build(root, dataset, split, *flags): run build_batches.py in this process -> (exit code, output, errors)."""
    from tests.support.builder import build_in_process

    with build_in_process(monkeypatch, capsys) as run:
        yield run


@pytest.fixture(scope="session")
def batches(tmp_path_factory) -> Path:
    """Prepared data of the toy set: 20 training and 20 validation expressions at 48 x 48."""
    from tests.support.tiny_set import prepared_tiny_set

    return prepared_tiny_set(tmp_path_factory.mktemp("set"))
