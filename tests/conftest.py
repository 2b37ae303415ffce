"""What the tests share: where things are, the toy data set, and its prepared data."""

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests/data"  # numbers and files that the tests compare with
SHARED = ROOT.parent / "shared"  # photographs that cannot be passed on, and their numbers

needs_shared = pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="the real photographs are not there")


def pytest_configure() -> None:
    # A shell's `make test &` has SIGINT ignored, `nohup make test` SIGHUP, and so would the programs that tests start
    # and send signals.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Before torch is imported: toy models are slower on several threads, and pytest-xdist uses every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU")


# The fixtures import what they need when they are used, so that no torch is imported before pytest_configure.
@pytest.fixture
def tiny(tmp_path) -> Path:
    """The folder of a toy data set in the real formats (tests/support/tiny_set.py)."""
    from tests.support.tiny_set import make_tiny_set

    return make_tiny_set(tmp_path / "set")


@pytest.fixture
def build(monkeypatch, capsys):
    """build(root, dataset, split, *flags): run build_batches.py in this process -> (exit code, output, errors)."""
    import build_batches
    from tests.support.builder import SIZE
    from tests.support.forked import without_log
    from utils.cli import run_main

    def run(root, dataset="Gref", split="train", *flags):
        arguments = ["-d", dataset, "-t", split, "--root", str(root), "--workers", "1", "--img-size", SIZE, *flags]
        monkeypatch.setattr(sys, "argv", ["build_batches.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_main(build_batches.main)
        output, error = capsys.readouterr()
        return left.value.code, output, without_log(error)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def batches(tmp_path_factory) -> Path:
    """Prepared data of the toy set: 20 training and 20 validation expressions at 48 x 48."""
    from prepare.writer import BuildOptions, build
    from tests.support.tiny_set import make_tiny_set

    root = make_tiny_set(tmp_path_factory.mktemp("set"))
    for split in ("train", "val"):
        folder = build(BuildOptions(root, "Gref", split, (48, 48), workers=1)).folder
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """The file of an untrained small model (tests/support/small_model.py)."""
    from tests.support.small_model import write_checkpoint

    path = tmp_path_factory.mktemp("small") / "best.pth"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def model(checkpoint):
    """The model in `checkpoint`, on the CPU."""
    from models import load_restr

    return load_restr(checkpoint, "cpu")
