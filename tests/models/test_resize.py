"""The kernels of the decoder's resizes, by Triton's interpreter, against PyTorch's operators in float64."""

import subprocess
import sys

from tests.conftest import ROOT


def test_values_and_gradients_of_the_kernels():
    module = "tests.support.interpreted_resize"
    run = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [float(line) for line in run.stdout.split()]
    assert len(errors) == 8, run.stderr
    assert max(errors) < 1e-6, errors
