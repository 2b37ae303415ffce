"""A program and its system: standard streams that are closed, full or lose their reader; signals; memory."""

import os
import platform
import pty
import re
import subprocess
import sys
import termios
from datetime import timedelta

import pytest

from tests.conftest import ROOT
from utils import cli

PROGRAM = """
import sys
from utils.cli import run_main
from utils.errors import InputError
def main():
    with open({path!r}, "w") as file:
        for number in range(3000):
            print("result", number, flush=True)
            print("progress", number, file=sys.stderr)
        file.write("done")
    raise InputError("a fault")
run_main(main)
"""


def shell(program: str, redirect: str = "") -> subprocess.CompletedProcess:
    """Run Python code with its streams as a shell sets them; stderr, where not redirected, is caught."""
    command = ["bash", "-c", f'"$0" -c "$1" {redirect}; exit ${{PIPESTATUS[0]}}', sys.executable, program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| head -1", "2>&1 | head -1", "2>&1 >&- | true", "2>/dev/full"]
)
def test_work_goes_on_to_its_end(tmp_path, redirect):
    done = shell(PROGRAM.format(path=str(tmp_path / "file")), redirect)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert (tmp_path / "file").read_text() == "done"  # and nothing that was meant for a closed stream
    if "2>" not in redirect:
        assert done.stderr.splitlines()[-1].endswith("error: a fault")


@pytest.mark.parametrize(
    ("main", "redirect", "words"),
    [
        ("print('a table')", ">/dev/full", "standard output: No space left on device"),
        ("__import__('torch').empty(2**60)", "", "out of memory"),
    ],
)
def test_what_the_system_refuses_is_one_line(main, redirect, words):
    done = shell(f"from utils.cli import run_main\nrun_main(lambda: {main})", redirect)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr


def test_a_terminal_that_is_closed(tmp_path):
    main, terminal = pty.openpty()
    command = [sys.executable, "-c", PROGRAM.format(path=str(tmp_path / "file"))]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT)
    os.read(main, 10)
    os.close(main)  # without SIGHUP, as it is not the controlling terminal
    os.close(terminal)
    assert process.wait(60) == 2
    assert (tmp_path / "file").read_text() == "done"


def test_progress_on_a_terminal_is_a_bar():
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    program = (
        "from utils.cli import log, progress_bar\n"
        "with progress_bar(total=3, unit='refs') as bar:\n    bar.update(2)\n    log('a word')\n    bar.update()"
    )
    assert subprocess.run([sys.executable, "-c", program], stderr=terminal, cwd=ROOT).returncode == 0
    shown = os.read(main, 10_000).decode()
    assert "\r100%|" in shown and re.search(r"\r\d\d:\d\d:\d\d a word\r\n", shown)


def test_progress_in_a_file_is_a_line_each_half_minute(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with cli.progress_bar(total=1000, initial=400, desc="unc train", unit="refs") as bar:
        for seconds in [10] + 89 * [1] + [100] + 9 * [1]:  # a slow start and a pause
            now[0] += seconds
            bar.update(6)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    at = {10: 406, 40: 586, 70: 766, 199: 946}
    left = [timedelta(seconds=round((1000 - n) * seconds / (n - 400))) for seconds, n in at.items()]
    assert [line.split()[2] for line in lines] == [*(f"{n}/1,000" for n in at.values()), "1,000/1,000"]
    assert [line.split("eta ")[1] for line in lines[1:-1]] == [str(time) for time in left[1:]]
    assert (lines[0], lines[-1]) == (
        "unc train 406/1,000 refs 0.6 refs/s",  # a start says nothing about the rest
        "unc train 1,000/1,000 refs 2.9 refs/s in 0:03:28",
    )


@pytest.mark.parametrize("options", [{"total": 5, "initial": 5}, {"total": 5, "disable": True}])
def test_no_progress_no_line(capsys, options):
    with cli.progress_bar(**options, unit="refs") as bar:
        bar.update(5 * ("disable" in options))
    assert capsys.readouterr().err == ""


SLOW_SCRIPTS = ("train_restr.py", "eval/evaluate.py", "predict.py", "tools/web_demo.py")  # they import PyTorch


@pytest.mark.parametrize(
    "script", ["build_vocab.py", "build_batches.py", *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW_SCRIPTS)]
)
def test_scripts_without_any_stream(script):
    command = ["bash", "-c", '"$@" <&- >&- 2>&-', "-", sys.executable, ROOT / script]
    assert [subprocess.run([*command, flag]).returncode for flag in ("--nonsense", "--help")] == [2, 0]


def test_nohup_stays_nohup():
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from train.process import StopSignal; from prepare.workers import stop_in_order\n"
        "stop = StopSignal(); stop_in_order(); os.kill(os.getpid(), signal.SIGHUP); assert not stop.requested\n"
    )
    assert shell(program).returncode == 0


HOLE = """
import torch
from train.process import settle_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

settle_memory()
megabytes = lambda n: torch.ones(n << 18)
before = resident()
megabytes(24)  # by itself glibc takes tensors of this size from its heap from now on
below, above = megabytes(20), [megabytes(1) for _ in range(40)]
del below
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_a_freed_tensor_leaves_no_hole():
    """settle_memory: freed tensors go back to the system, even from below others (without it: 60)."""
    assert 35 < int(shell(HOLE).stdout) < 50
