"""Where a result comes from: the facts that metrics.json and a run's config.json both record."""

import platform
import shlex
import subprocess
import sys
import tomllib
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torchvision", "timm", "numpy", "pillow")  # whose versions are recorded, beside PyTorch's


def facts(device: torch.device) -> dict:
    """Device, host, command, date (UTC), version of the code, and of Python and libraries, as plain values."""
    libraries = {"torch": torch.__version__}
    for name in LIBRARIES:
        libraries[name] = next((found.version for found in distributions(name=name)), None)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "host": platform.node(),
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": _code_version(),
        "python": platform.python_version(),
        "libraries": libraries,
    }


def _code_version() -> str:
    """The git commit of the code, with "-dirty" if tracked files were changed; the release where there is no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):  # no git, or no commit
        if (ROOT / ".git").exists():  # not a copy inside somebody else's repository
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
