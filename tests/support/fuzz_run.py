"""Reading mutated files, to be done in a process that may be lost."""

import faulthandler
import json
import os
import resource
from pathlib import Path
from random import Random

from tests.support.fuzz_readers import READERS, Case
from tests.support.mutate import mutated_bytes, mutated_value
from utils.errors import InputError

SECONDS, MEMORY = 10, 4 * 2**30


def fuzz(name: str, folder: Path, examples: int, fresh: bool) -> None:
    """Read `examples` mutated files; how many differ, and how many of these are read, goes to FOLDER/counts.json.

    Fails by an exception, by ending the process at a file that takes SECONDS, or on one that takes 4 GiB; the file
    stays. The same files each time, unless `fresh`.
    """
    folder.mkdir()
    case = READERS[name](folder)
    pages = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (pages + MEMORY,) * 2)
    for whole in case.wholes:
        case.path.write_bytes(whole)
        case.read()
    seen: dict[int, bool] = {}  # hash of a file -> whether it was read
    random = Random(None if fresh else name)
    for _ in range(examples):
        whole = random.choice(case.wholes)
        if case.values and random.random() < 0.5:
            content = case.values.dump(mutated_value(random, case.values.load(whole), case.values.extra))
        else:
            content = mutated_bytes(random, whole)
        case.path.write_bytes(content)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        seen[hash(content)] = _is_read(case, folder)
        faulthandler.cancel_dump_traceback_later()
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
