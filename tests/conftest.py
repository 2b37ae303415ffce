"""What the tests share: where the reference material is, if it is there at all."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="reference material is not there")
