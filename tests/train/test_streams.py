"""Standard streams that are closed, full, or lose their reader (utils/cli.py), and how scripts then end."""

import os
import pty
import subprocess
import sys

import pytest

from tests.conftest import ROOT

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


def shell(program: str, redirect: str, **options) -> subprocess.CompletedProcess:
    """Run Python code with its streams as a shell sets them; stderr, where not redirected, is caught."""
    command = ["bash", "-c", f'"$0" -c "$1" {redirect}; exit ${{PIPESTATUS[0]}}', sys.executable, program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, **options)


@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| head -1", "2>&1 | head -1", "2>&1 >&- | true", "2>/dev/full"]
)
def test_work_goes_on_to_its_end(tmp_path, redirect):
    done = shell(PROGRAM.format(path=str(tmp_path / "file")), redirect)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert (tmp_path / "file").read_text() == "done"  # and nothing that was meant for a closed stream
    if "2>" not in redirect:
        assert done.stderr.splitlines()[-1].endswith("error: a fault")


def test_a_full_disk_under_standard_output_is_an_error():
    program = "from utils.cli import run_main\nrun_main(lambda: print('a table'))"
    done = shell(program, ">/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output: No space left on device" in done.stderr


def test_a_terminal_that_is_closed(tmp_path):
    main, terminal = pty.openpty()
    program = PROGRAM.format(path=str(tmp_path / "file"))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT
    )
    os.read(main, 10)
    os.close(main)  # without SIGHUP, as it is not the controlling terminal
    os.close(terminal)
    assert process.wait(60) == 2
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.parametrize(
    "script",
    ["train_restr.py", "eval/evaluate.py", "predict.py", "build_batches.py", "build_vocab.py", "tools/check_data.py"],
)
def test_scripts_without_any_stream(script):
    command = ["bash", "-c", '"$@" <&- >&- 2>&-', "-", sys.executable, ROOT / script]
    assert subprocess.run([*command, "--nonsense"], timeout=60).returncode == 2
    assert subprocess.run([*command, "--help"], timeout=60).returncode == 0
