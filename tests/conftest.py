"""What the tests share: where the reference material is, if it is there at all."""

import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests/data"  # numbers and files that the tests compare with
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="reference material is not there")


def pytest_configure() -> None:
    # A shell's `make test &` has SIGINT ignored, and so would the programs that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
