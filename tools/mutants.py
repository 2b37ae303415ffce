"""How many small faults, put into the code on purpose, do the tests notice? (make mutants)

    python tools/mutants.py                    # 25 minutes on 2 cores
    python tools/mutants.py models/loss.py     # of some files of TESTS

cosmic-ray makes the faults: a + becomes a -, a 2 a 3, a condition its opposite, a loop runs zero times. A fixed sample
of each file's faults is tried, one at a time, against the tests that TESTS names, in copies of the working tree below a
temporary folder. Ctrl-C ends the run early; the table then holds what was tried.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import chain, zip_longest
from math import inf
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.util import restore_contents

ROOT = Path(__file__).resolve().parents[1]
PER_FILE, MINUTES, AT_ONCE = 12, 25, 2  # faults of a file at most; no fault is begun after MINUTES; faults at a time
TESTS = {  # file -> its tests, quick ones first: models/loss is tests/models/test_loss.py
    "models/blocks.py": "models/blocks models/decoder models/vision models/reference",
    "models/checkpoint.py": "models/checkpoint files/bombs",
    "models/config.py": "models/config models/reference",
    "models/convert.py": "models/convert",
    "models/decoder.py": "models/decoder models/reference",
    "models/fusion.py": "models/blocks models/attention models/reference",
    "models/inference.py": "models/attention prepare/geometry tools/predict",
    "models/language.py": "models/language models/reference",
    "models/loss.py": "models/loss models/reference",
    "models/pretrained.py": "models/pretrained models/tensor_file",
    "models/reference.py": "models/reference models/convert",
    "models/restr.py": "models/config models/checkpoint models/attention models/reference models/compile",
    "models/tensor_file.py": "models/tensor_file models/pretrained",
    "models/vision.py": "models/pretrained models/reference models/vision",
    "train/loop.py": "train/training train/train",
    "eval/metrics.py": "eval/metrics eval/evaluator",
    "eval/evaluator.py": "eval/evaluator",
    "prepare/masks.py": "prepare/segmentation",
    "utils/text.py": "prepare/text prepare/words prepare/build_vocab",
}
# Not tried: | (mostly in annotations), `is` in place of a comparison (often the same), operators with arguments.
SKIPPED = re.compile("BitOr|Comparison.*[qtE]_Is|Variable")
PRELOADED = ("torch", "timm", "scipy.io", "PIL.Image", "hypothesis")  # imported once, not for each fault


class Mutant(NamedTuple):
    """`code` is the text of the file `path` with a fault in line `line`; line 0: without one."""

    path: str
    line: int
    code: str


def tests_of(path: str) -> list[str]:
    return ["tests/{}/test_{}.py".format(*name.split("/")) for name in TESTS[path].split()]


def sample(path: str) -> Iterator[Mutant]:
    """Yield up to PER_FILE mutants of a file, one a place. A line that stays keeps its rank, wherever it moves."""
    source = (ROOT / path).read_text()
    lines, tree = source.splitlines(), get_ast(source)
    ranked, seen, places = [], Counter(), set()
    for name in filter(lambda name: not SKIPPED.search(name), operator_names()):
        operator = get_operator(name)()
        nodes = ((node, place) for node in ast_nodes(tree) for place, _ in operator.mutation_positions(node))
        for index, (node, place) in enumerate(nodes):
            key = f"{lines[place[0] - 1].strip()} {name}"
            seen[key] += 1
            if not node.search_ancestor("fstring"):  # a message
                ranked.append((random.Random(f"{key} {seen[key]}").random(), place, operator, index))
    for _, place, operator, index in sorted(ranked, key=lambda entry: entry[0]):
        if len(places) < PER_FILE and place not in places:
            with suppress(SyntaxError):
                code = mutate_code(source, operator, index)
                compile(code, path, "exec")
                places.add(place)
                yield Mutant(path, place[0], code)


def copy_tree(folder: Path) -> Path:
    names = subprocess.check_output(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True).split("\0")
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_tests(path: str, folder: Path) -> None:
    """Run the tests of a file in `folder`, a copy of the tree, and end this process with their exit code."""
    os.setsid()  # a group of its own, which `survives` ends
    for stream in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    os.chdir(folder)
    sys.path[0] = str(folder)
    sys.modules["__main__"] = types.ModuleType("__main__")  # processes that tests spawn do not import this script
    os._exit(pytest.main(["-xq", "-p", "no:cacheprovider", *tests_of(path)]))


def survives(folders: SimpleQueue, limits: dict[str, float], end: float, mutant: Mutant) -> tuple[bool | None, float]:
    """Whether a mutant's tests pass, in time, in an idle copy of the tree, and the seconds they took.

    None instead if it is later than `end`, as time.monotonic() counts.
    """
    if (begun := time.monotonic()) > end:
        return None, 0.0
    folder = folders.get()
    with restore_contents(folder / mutant.path):
        (folder / mutant.path).write_text(mutant.code)
        process = get_context("fork").Process(target=run_tests, args=(mutant.path, folder))  # has PRELOADED already
        process.start()
        process.join(limits.get(mutant.path, 600))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what the tests left running
        process.join()
    folders.put(folder)
    return process.exitcode == 0, time.monotonic() - begun


def main() -> None:
    files = sys.argv[1:] or [*TESTS]
    known = {f"models/{file.name}" for file in ROOT.glob("models/[!_]*.py")} | set(files)
    if unknown := known - TESTS.keys():
        sys.exit(f"tools/mutants.py: not in its table TESTS: {', '.join(sorted(unknown))}")
    begun, tried, limits, folders = time.monotonic(), {path: [] for path in files}, {}, SimpleQueue()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a .pyc file would outlive its fault
    for name in PRELOADED:
        import_module(name)
    with TemporaryDirectory(ignore_cleanup_errors=True) as place, suppress(KeyboardInterrupt):
        for number in range(AT_ONCE):
            folders.put(copy_tree(Path(place, str(number))))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            originals = [Mutant(path, 0, (ROOT / path).read_text()) for path in files]
            first = partial(survives, folders, {}, inf)
            for path, (passed, seconds) in zip(files, pool.map(first, originals), strict=True):
                if not passed:
                    sys.exit(f"tools/mutants.py: these tests fail without a fault: {' '.join(tests_of(path))}")
                limits[path] = 60 + 4 * seconds
            # One mutant of each file, then the next.
            mutants = [mutant for turn in zip_longest(*map(sample, files)) for mutant in turn if mutant]
            in_time = partial(survives, folders, limits, begun + 60 * MINUTES)
            for (path, line, code), (survived, seconds) in zip(mutants, pool.map(in_time, mutants), strict=True):
                if survived is not None:
                    tried[path].append(not survived)
                    change = (text.splitlines()[line - 1].strip() for text in ((ROOT / path).read_text(), code))
                    outcome = "SURVIVED" if survived else "killed"
                    print(f"{outcome:8} {seconds:4.0f} s  {path}:{line}  {'  ->  '.join(change)}", flush=True)
    for path, killed in [*tried.items(), ("all", [*chain(*tried.values())])]:
        print(f"{path:24} {sum(killed):4} of {len(killed):4} killed")
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
