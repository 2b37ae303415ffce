"""Prepared data and checkpoints for the tests of the command line."""

import pytest

from tests.support.memory_split import write_folder
from tests.support.small_model import write_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with batches and, in exp/, the checkpoints of steps 500 and 5000 and the best."""
    root = tmp_path_factory.mktemp("evaluate")
    write_folder(root)
    for name, step in (("unc_500", 500), ("unc_5000", 5000), ("best", 5000)):
        write_checkpoint(root / "exp" / f"{name}.pth", step)
    return root
