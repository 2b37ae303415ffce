"""Running build_batches.py in tests as a process of its own, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from skimage.transform import resize

from tests.conftest import ROOT

SIZE = "48"


def start(root, *flags, split="train"):
    """Run the script as users do, in a process group of its own."""
    command = [sys.executable, ROOT / "build_batches.py", "-d", "Gref", "-t", split, "--root", root, "--img-size", SIZE]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *flags], stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd="/")


def refusal(build, *arguments) -> str:
    """The one line with which the `build` of conftest.py refuses."""
    code, _, error = build(*arguments)
    assert code == 2 and error.count("\n") == 1 and error.startswith("build_batches.py: error: "), error
    return error


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def batches(root: Path, dataset="Gref") -> Path:
    family = "referit" if dataset == "referit" else "mscoco"
    return root / f"data/{family}/{dataset}_{SIZE}_batch"


def on_canvas(array: np.ndarray) -> np.ndarray:
    """Resized by scikit-image to fit 48 x 48, and centred on zeros, in floating point."""
    scale = min(48 / array.shape[0], 48 / array.shape[1])
    small = resize(array, [round(side * scale) for side in array.shape[:2]])
    top, left = ((48 - side) // 2 for side in small.shape[:2])
    canvas = np.zeros((48, 48, *array.shape[2:]))
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


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
