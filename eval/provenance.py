"""Where a number comes from: command, code and libraries, as recorded in `metrics.json`."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
_LIBRARIES = ("torchvision", "timm", "numpy", "pillow")


def provenance() -> dict:
    """Command line, date (UTC), code version, Python and library versions."""
    return {
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "python": platform.python_version(),
        "libraries": {"torch": torch.__version__} | {name: _installed(name) for name in _LIBRARIES},
    }


def code_version() -> str:
    """The git commit of the code, with "-dirty" if tracked files were changed; the release where there is no git."""
    try:
        if (REPOSITORY / ".git").exists():  # not a copy inside somebody else's repository
            commit = _git("rev-parse", "HEAD")
            return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):  # no git, or no commit
        pass
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _installed(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
