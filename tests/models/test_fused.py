"""The operators of a transformer block on a GPU, by Triton's interpreter, against PyTorch's in float64."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_values_and_gradients_of_the_operators():
    module = "tests.support.interpreted_fused"
    run = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [(exact == "True", float(error)) for exact, error in map(str.split, run.stdout.splitlines())]
    assert len(errors) == 23, run.stderr
    assert max(error for exact, error in errors if exact) < 2e-6, errors
    assert max(error for _, error in errors) < 8e-3, errors  # bfloat16
