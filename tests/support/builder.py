"""Running build_batches.py in tests: in this process with its output caught, or as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import build_batches
from tests.conftest import ROOT
from tests.conftest import build as build_fixture  # noqa: F401 (a fixture)
from tests.conftest import tiny as tiny_fixture  # noqa: F401 (a fixture)
from utils.cli import run_main

SIZE = "48"


@contextmanager
def build_in_process(monkeypatch, capsys):
    """The function behind the fixture `build`; signal handlers are put back at the end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(root, dataset="Gref", split="train", *flags):
        arguments = ["-d", dataset, "-t", split, "--root", str(root), "--workers", "1", *flags]
        if not any(flag.startswith("--img") for flag in flags):
            arguments += ["--img-size", SIZE]
        monkeypatch.setattr(sys, "argv", ["build_batches.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_main(build_batches.main)
        return left.value.code, *capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start(root, *flags, split="train"):
    """Run the script as users do, in a process group of its own."""
    command = [sys.executable, ROOT / "build_batches.py", "-d", "Gref", "-t", split, "--root", root, "--img-size", SIZE]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *flags], stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd="/")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def batches(root: Path, dataset="Gref") -> Path:
    family = "referit" if dataset == "referit" else "mscoco"
    return root / f"data/{family}/{dataset}_{SIZE}_batch"


def wait_for_group_to_end(group: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("workers outlived their parent")
