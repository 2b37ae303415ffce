"""Whether everything works on a GPU, and how fast: one call of under ten minutes, without a network or weights.

    make gpu-data                                                    # where pycocotools is: shapes at 480 x 480, 16 MB
    python benchmarks/gpu_check.py --out gpu_check                   # on a machine with a GPU
    python benchmarks/gpu_check.py --device cpu --toy --out toy      # only shows that the script runs

Needs torch, timm, numpy, Pillow, tqdm, tensorboard, and the folder that `make gpu-data` writes. Fourteen items, in the
order of what they are worth. Each is a process of its own with a time limit, so that one that fails or hangs costs only
itself. Items in which nothing is timed run side by side. OUT.md and OUT.json are written whenever an item ends.
The authors' way (benchmarks/plain_restr.py: softmax attention, upsample-then-project decoder) trains under float16
autocast with a gradient scaler, which is its `--amp`, and evaluates one expression at a time in float32.
"""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.checks import groups, numbers, runs, speed
from benchmarks.checks.common import Check, Item, Row
from benchmarks.checks.processes import Job
from benchmarks.report import NOT_MEASURED, table
from eval.loaders import default_workers
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.files.writing import atomic_write, write_json

DATA = ROOT / "data/gpu_check/data/mscoco/unc_480_batch"
LOG = 4000  # characters of the log of an item that fails, which OUT.json holds
ROOM = 40e9  # bytes that runs of the full model may leave behind at a time
ITEMS = {
    1: Item("Machine", speed.machine, 60, alone=True),
    2: Item("Full model, batch 2, against the CPU in float32", numbers.model_against_cpu, 90),
    3: Item("Decoder against float64", numbers.decoder, 90),
    4: Item("Waits of a training step", numbers.waits_of_a_step, 60),
    5: Item("train_restr.py, 40 steps each", runs.short_runs, 150),
    6: Item("Equal bits: --deterministic, SIGTERM and --resume", runs.equal_bits, 120),
    7: Item("torch.compile", numbers.compiled_against_eager, 170, alone=True),
    8: Item("300 steps on shapes, then evaluation", runs.learning, 120),
    9: Item("Profile of a step of 64 in bf16", speed.profiled, 60, alone=True),
    10: Item("Speed and memory", speed.rates, 150, alone=True),
    11: Item("Loader", speed.loading, 60, alone=True),
    12: Item("Groups of processes", groups.groups, 60),
    13: Item("Out of memory and divergence", runs.failures, 120),
    14: Item("kill -9 while saving; a state of the GPU on the CPU", runs.kills, 120),
}


class Task(Job):
    """An item at work; its rows appear in a file as they are measured."""

    def __init__(self, number: int, check: Check, deadline: float):
        self.item, self.number, self.state = ITEMS[number], number, ""
        self.file, self.folder = check.work / f"{number:02}.jsonl", check.work / f"{number:02}"
        self.folder.mkdir()
        check = replace(check, work=self.folder)
        self.started = time.monotonic()
        self.until = min(self.started + self.item.limit, deadline)
        super().__init__(self.file.with_suffix(".txt"), _write_rows, self.item, check, self.file, session=True)

    def ended(self) -> bool:
        """Whether it has, by itself or because its time is up; then `state` says how."""
        late = time.monotonic() > self.until
        if self.running and not late:
            return False
        code = self.process.exitcode
        self.kill_session()  # what it has started, too
        shutil.rmtree(self.folder, ignore_errors=True)  # gigabytes
        self.state = "time limit" if code is None else "done" if code == 0 else f"failed ({code}): {self.last_line()}"
        return True

    def result(self) -> dict:
        """What is known of it so far, as plain values."""
        lines = self.file.read_text().split("\n")[:-1] if self.file.exists() else []
        seconds = round(time.monotonic() - self.started, 1)
        found = _result(self.number, self.state or "at work", seconds, [Row(*json.loads(line)) for line in lines])
        return found | ({"log": self.text()[-LOG:]} if self.state.startswith("failed") else {})


def _write_rows(item: Item, check: Check, file: Path) -> None:
    with file.open("w", buffering=1) as rows:
        for row in item.run(check):
            odd = isinstance(row.value, float) and not math.isfinite(row.value)
            rows.write(json.dumps(row._replace(value=str(row.value)) if odd else row) + "\n")


def _result(number: int, state: str, seconds: float = 0, rows: list[Row] = ()) -> dict:
    return {"number": number, "state": state, "seconds": seconds, "rows": [row._asdict() for row in rows]}


def carry_out(wanted: list[int], check: Check, deadline: float, keep: Callable[[dict[int, dict]], None]) -> None:
    """Run the items in order. `keep` gets all results so far, whenever an item has ended.

    No item is begun after `deadline`, as time.monotonic() counts, and none goes on.
    """
    waiting, tasks = list(wanted), []
    results = {number: _result(number, "not begun") for number in wanted}
    while waiting or tasks:
        while waiting and _fits(ITEMS[waiting[0]], tasks, check.together) and time.monotonic() < deadline:
            tasks.append(Task(waiting.pop(0), check, deadline))
        if waiting and not tasks and time.monotonic() >= deadline:
            waiting.clear()
        for task in [task for task in tasks if task.ended()]:
            tasks.remove(task)
            results[task.number] = task.result()
            print(f"{task.number:2} {task.item.title}: {task.state}", file=sys.stderr, flush=True)
            keep(results | {other.number: other.result() for other in tasks})
        time.sleep(0.05)
    keep(results)


def _fits(item: Item, tasks: list[Task], together: int) -> bool:
    """Whether an item may begin beside those at work."""
    if item.alone or any(task.item.alone for task in tasks):
        return not tasks
    return len(tasks) < together


def markdown(results: dict[int, dict], toy: bool) -> str:
    """Tables of the results, what is not as asked first."""
    parts, summary = ["(toy size: these figures mean nothing)"] if toy else [], []
    for number, result in results.items():
        rows = result["rows"]
        missed, asked = (sum(row["good"] in kinds for row in rows) for kinds in ((False,), (False, True)))
        summary.append((number, ITEMS[number].title, result["state"], asked - missed, missed, result["seconds"]))
    parts.append(table(("item", "what", "state", "as asked", "missed", "s"), summary))
    for number, result in results.items():
        parts.append(f"## {number}. {ITEMS[number].title}")
        said = {True: "yes", False: "**no**", None: ""}
        rows = [(row["what"], row["value"], row["asked"], said[row["good"]]) for row in result["rows"]]
        parts.append(table(("what", "value", "asked", "as asked"), rows) if rows else NOT_MEASURED)
    return "\n".join(f"{part}\n" for part in parts)


def short(results: dict[int, dict]) -> str:
    """Lines for the terminal: what is not as asked, and why an item did not end."""
    lines = []
    for number, result in results.items():
        rows = [row for row in result["rows"] if row["good"] is False]
        if result["state"] != "done":
            lines.append(f"{number}: {result['state']}")
        lines += [f"{number}: {row['what']}: {row['value']} (asked: {row['asked']})" for row in rows]
    return "\n".join(lines) or "all as asked"


def work_folder(device: str, needed: float = ROOM) -> str | None:
    """Where runs leave their gigabytes: in memory where there is room, else where temporary files go."""
    memory = speed.SHARED_MEMORY
    roomy = device != "cpu" and memory.is_dir() and shutil.disk_usage(memory).free > needed
    return str(memory) if roomy else None


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu with --toy")
    parser.add_argument("--toy", action="store_true", help="toy model, which shows that the script runs")
    shown = DATA.relative_to(ROOT)
    parser.add_argument("--data", type=Path, help=f"prepared data with train and val (default: {shown})")
    parser.add_argument("--items", default=",".join(map(str, ITEMS)), help="numbers of items, with commas")
    parser.add_argument("--minutes", type=float, default=9, help="minutes after which everything ends")
    parser.add_argument("--together", type=int, default=3, help="processes at work at a time where nothing is timed")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that load samples")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="path of OUT.md and OUT.json")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    with suppress(ImportError):  # item 1 says so
        import_module("torch.utils.tensorboard")  # before the forks: a second less in each
    wanted = [int(number) for number in args.items.split(",")]
    if unknown := set(wanted) - set(ITEMS):
        raise InputError(f"--items: there is no {min(unknown)}; choose from 1 to {len(ITEMS)}")
    data = (args.data or DATA).resolve()
    if not (data / "meta.json").is_file():
        raise InputError(f"--data {data}: no prepared data there; make it with `make gpu-data`")
    kept: dict[int, dict] = {}

    def keep(results: dict[int, dict]) -> None:
        kept.update(results)
        write_json(args.out.with_suffix(".json"), {"toy": args.toy, "items": list(results.values())})
        with atomic_write(args.out.with_suffix(".md")) as file:
            file.write(markdown(results, args.toy).encode())

    with tempfile.TemporaryDirectory(prefix="gpu_check", dir=work_folder(args.device)) as work:
        check = Check(args.device, args.toy, data, Path(work), args.workers, args.together)
        carry_out(wanted, check, deadline, keep)
    print(args.out.with_suffix(".md").read_text())
    print(short(kept))


if __name__ == "__main__":
    run_main(main)
