"""Processes of a run on several machines: their places, and that they train one model on the same data."""

import os
from types import SimpleNamespace

import pytest
import torch

from tests.support.train_runs import equal, state, train
from tests.train.test_processes import SGD, STILL, ours, together
from utils import device
from utils.device import Process, choose_device, explained_memory
from utils.errors import InputError

LOCAL = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")


@pytest.fixture
def cards(monkeypatch):
    """cards(n): as if this machine had n GPUs. The one that was chosen is in the list that it returns."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def cards(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return chosen

    return cards


@pytest.fixture
def joined(cards, monkeypatch):
    """joined(count, **environment): number of the GPU that a process takes in that environment on `count` GPUs."""
    monkeypatch.setattr(device.dist, "init_process_group", lambda _, device_id: None)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", *LOCAL):
        monkeypatch.delenv(name, raising=False)

    def joined(count, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cards(count)
        return device._join(Process()).device.index

    return joined


@pytest.mark.parametrize("name", LOCAL)
def test_each_process_takes_its_own_gpu(joined, name):
    assert joined(8, WORLD_SIZE="16", RANK="13", **{name: "5"}) == 5


def test_a_gpu_that_is_the_only_one_visible(joined):
    """As srun --gpus-per-task=1 has it; but two processes of one torchrun do not share a GPU unasked."""
    assert joined(1, WORLD_SIZE="4", RANK="3", SLURM_LOCALID="3") == 0
    with pytest.raises(InputError, match="sees 1 CUDA device"):
        joined(1, WORLD_SIZE="4", RANK="3", LOCAL_RANK="3", LOCAL_WORLD_SIZE="4")


@pytest.mark.parametrize(
    ("able", "given", "found"), [(1, None, "expandable_segments:True"), (0, None, None), (1, "a", "a")]
)
def test_the_allocator_extends_its_segments_where_the_driver_can(cards, monkeypatch, able, given, found):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", given or "")  # put back after the test
    if not given:
        del os.environ["PYTORCH_ALLOC_CONF"]
    asked = []

    def attribute(pointer, number, index):
        asked.append((number, index))
        pointer._obj.value = able
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: driver)
    cards(4)
    choose_device("cuda:2")
    assert os.environ.get("PYTORCH_ALLOC_CONF") == found and asked == [(102, 2)]


def test_alone_a_scheduler_does_not_choose(joined, cards):
    assert joined(8, SLURM_LOCALID="2") == 0
    cards(8)
    assert choose_device("cuda:3") == torch.device("cuda", 3)


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-2"}, {"RANK": "1"}, {"WORLD_SIZE": "2", "RANK": "2"}], ids=str
)
def test_numbers_of_processes_that_are_none(joined, environment):
    with pytest.raises(InputError, match="start with torchrun"):
        joined(1, **environment)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("NCCL error: unhandled cuda error, Last error: Cuda failure 2 'out of memory'"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_memory_that_ran_out_in_any_library(error):
    with pytest.raises(InputError, match="^out of memory: buy more"), explained_memory("buy more"):
        raise error


def test_other_errors_are_not_about_memory():
    with pytest.raises(RuntimeError, match="shapes"), explained_memory("buy more"):
        raise RuntimeError("shapes do not fit")


def test_a_run_goes_on_to_float16_and_back(batches, tmp_path):
    """float16 has a scaler of gradients that bfloat16 and float32 have not."""
    flags = ["--num_steps", "2", "--save_every", "2", "--amp", "--amp_dtype"]
    assert train(batches, tmp_path / "run", *flags, "bf16")[0] == 0
    for dtype, steps in (("fp16", "4"), ("bf16", "6")):
        more = ["--num_steps", steps, "--resume", "--allow_changes"]
        code, message = train(batches, tmp_path / "run", *flags, dtype, *more)
        assert code == 0, message
        assert f"from here on with --amp_dtype {dtype}" in message
        assert bool(state(tmp_path / "run")["training"]["trainer"]["scaler"]) == (dtype == "fp16")


ELSEWHERE = """
import os, sys
import train_restr
from utils.cli import run_main
if os.environ["RANK"] == "1":
    sys.argv += {more!r}
run_main(train_restr.main)
"""


def apart(batches, folder, script, more, *flags):
    """Two processes, of which the second has `more` flags, as another machine may have other files."""
    script.write_text(ELSEWHERE.format(more=[str(word) for word in more]))
    return together(batches, folder, *STILL, *flags, script=script, base=SGD)


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_saved_state(batches, tmp_path):
    """It gets decision, state and weights from the first: the run ends with the bits of one in a common folder."""
    flags, again = ("--num_steps", "8", "--save_every", "4"), ("--resume", "--allow_changes")
    for name in ("common", "apart"):
        code, message = together(batches, tmp_path / name, *STILL, *flags, "--num_steps", "4", base=SGD)
        assert code == 0, message
    assert together(batches, tmp_path / "common", *STILL, *flags, *again, base=SGD)[0] == 0
    other = ["--weights_dir", tmp_path / "elsewhere"]
    code, message = apart(
        batches, tmp_path / "apart", tmp_path / "run.py", other, *flags, "--resume", "--allow_changes"
    )
    assert code == 0, message
    same = (state(tmp_path / name)["model"] for name in ("common", "apart"))
    assert equal(*same)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--lr", "0.5"], ["--set", "val"]], ids=str)
def test_machines_with_other_flags_or_data(batches, tmp_path, more):
    code, message = apart(batches, tmp_path / "run", tmp_path / "run.py", more)
    assert code == 1
    assert len(ours(message)) == 1 and "process 1 has another" in message
    assert not (tmp_path / "run").exists()
