"""The memory of a training step as --print_model says it."""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from models.config import ReSTRConfig
from models.restr import build_restr
from tests.conftest import ROOT
from tests.support.small_model import CONFIG
from tools import model_size
from tools.model_size import _Peak
from train.options import parse_options
from utils.errors import InputError

MB = 2**20


@pytest.fixture(scope="module")
def step_memory():
    """The function, in another process: after a backward pass over such tensors none that is forked can have one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda *given, **how: pool.submit(model_size.step_memory, *given, **how).result()


def test_the_peak_of_known_tensors():
    with _Peak() as peak:
        a = torch.zeros(MB)  # 4 MB
        b = a.view(1024, 1024).t()  # the same memory
        c = b + 1
        del a, b
        d = torch.stack([c, c, c])  # with c 16 MB: the most
        del c, d
        e = torch.zeros(2 * MB)
    assert (peak.most, peak.now, e.nbytes) == (16 * MB, 8 * MB, 8 * MB)


def test_what_the_optimiser_and_kept_gradients_add(step_memory):
    sizes = [weight.numel() for weight in build_restr(CONFIG).parameters()]
    weights = sum(sizes)
    adam, sgd = (step_memory(CONFIG, 2, moments=moments) for moments in (2, 1))
    assert adam - sgd == 4 * weights
    assert 0 < step_memory(CONFIG, 2, kept=True) - adam <= 4 * (weights + max(sizes))
    assert step_memory(CONFIG, 8, checkpointed=True) < step_memory(CONFIG, 8, "bf16") < step_memory(CONFIG, 8)


def test_print_model_divides_the_batch(monkeypatch):
    asked = []
    monkeypatch.setattr(model_size, "step_memory", lambda *given, **how: asked.append((given[1:], how)) or 2e9)
    options = parse_options("", "--data_dir . --adamW --batch_size 24 --accum 3 --amp --grad_checkpoint".split())
    assert "4 samples at a time: 2.0 GB" in model_size.describe_step(options, CONFIG, world=2)
    assert asked == [((4, "bf16", True), {"moments": 2, "kept": True, "loss": options.loss})]
    monkeypatch.setattr(model_size, "find_spec", lambda name: None)
    assert "only known with Triton" in model_size.describe_step(options, CONFIG, world=2)
    with pytest.raises(InputError, match="--batch_size 24 cannot be divided by 5 processes x --accum 3"):
        model_size.describe_step(options, CONFIG, world=5)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_table_of_the_documentation(step_memory, row):
    """Its figures were traced in another way."""
    text = (ROOT / "docs/USAGE.md").read_text().split("## Memory")[1]
    flags, *cells = [re.findall(r"[^|]+", line) for line in re.findall(r"^\| .*`.*|^\| \(float32.*", text, re.M)][row]
    for samples, cell in zip((1, 8, 16, 32, 64), cells, strict=True):
        told = step_memory(ReSTRConfig(), samples, "bf16" if "--amp" in flags else None, "checkpoint" in flags) / 1e9
        assert told == pytest.approx(float(cell.split(",")[0]), rel=0.05), samples
