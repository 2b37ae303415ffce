"""Reading mutated files, to be done in a process that may be lost."""

import faulthandler
import hashlib
import json
import os
import resource
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fuzz_readers import READERS, Case
from tests.support.mutate import mutated_bytes, mutated_value
from utils.errors import InputError

SECONDS, MEMORY = 10, 4 * 2**30
ROUNDS = 4  # of many files hypothesis makes some twice


def fuzz(name: str, folder: Path, examples: int, fresh: bool) -> None:
    """Read about `examples` mutated files; the counts go to FOLDER/counts.json.

    Fails by an exception, by ending the process at a file that takes SECONDS, or on one that takes 4 GiB. The same
    files each time, unless `fresh`.
    """
    folder.mkdir()
    case = READERS[name](folder)
    pages = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (pages + MEMORY,) * 2)
    for whole in case.wholes:
        case.path.write_bytes(whole)
        case.read()
    seen: dict[bytes, bool] = {}  # file -> whether it was read

    @settings(
        max_examples=examples, derandomize=not fresh, database=None, deadline=None, suppress_health_check=HealthCheck
    )
    @given(st.randoms(use_true_random=False), st.integers(0, len(case.wholes) - 1), st.booleans())
    def run(random: Random, form: int, by_value: bool) -> None:
        whole = case.wholes[form]
        if by_value and case.load:
            content = case.dump(mutated_value(random, case.load(whole), case.extra))
        else:
            content = mutated_bytes(random, whole)
        case.path.write_bytes(content)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        seen[hashlib.sha256(content).digest()] = _is_read(case, folder)
        faulthandler.cancel_dump_traceback_later()

    for _ in range(ROUNDS if fresh else 1):
        if len(seen) < examples:
            run()
    counts = {"files": len(seen), "read": sum(seen.values())}
    (folder / "counts.json").write_text(json.dumps(counts))


def _is_read(case: Case, folder: Path) -> bool:
    """Whether the file gives a value; if not, it has to be refused as a terminal and a user need it."""
    try:
        case.read()
        return True
    except InputError as error:
        message = str(error)
    lines = message.splitlines()  # several where a file of the user's own has several faults
    assert all(line.isprintable() and len(line) < 700 for line in lines), repr(message)
    assert case.path.name in message or str(folder) in message, message
    assert "MemoryError" not in message and "llocate" not in message, message  # it asked for more than it may have
    return False
