"""Mutated files of every kind: a value or one line, within ten seconds and 4 GiB. `make fuzz` reads many more.

Each reader runs in a process of its own, so that a crash, a hang or greed for memory is seen and named.
"""

import json
import os

import pytest

from tests.support.forked import errors, start
from tests.support.fuzz_readers import READERS
from tests.support.fuzz_run import fuzz

pytestmark = pytest.mark.fuzz

FILES = int(os.environ.get("FUZZ", "0"))  # over all readers; 0: the usual ones, the same each time
EACH = FILES // len(READERS) or 30


@pytest.mark.parametrize("reader", READERS)
def test_mutated_files(tmp_path, reader):
    process = start(fuzz, reader, tmp_path / "case", EACH, bool(FILES), output=tmp_path / "fuzz")
    process.join(EACH * 10 + 60)
    process.kill()
    printed = errors(tmp_path / "fuzz") + (tmp_path / "fuzz.out").read_text()
    assert (process.exitcode, printed) == (0, ""), f"see {tmp_path}"
    counts = json.loads((tmp_path / "case/counts.json").read_text())
    assert counts["files"] >= 0.8 * EACH and counts["read"] < counts["files"]
