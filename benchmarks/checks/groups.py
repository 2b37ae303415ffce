"""Groups of processes on one device: the step of DistributedDataParallel is that of one process."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.checks.common import Check, Row, at_most, holds, relative
from benchmarks.checks.processes import Job
from benchmarks.ways import OURS
from models.loss import LossConfig, restr_loss
from train.loop import Trainer
from train.options import Recipe
from utils.device import Ranks

SAMPLES, STEPS = 4, 3


def groups(check: Check) -> Iterator[Row]:
    """Losses and gradient norms of three steps: alone, in a group of one, in a group of two on the same device."""
    found = {}
    ways = {"alone": (1, None), "NCCL, one process": (1, "nccl"), "gloo, two processes": (2, "gloo")}
    for number, (name, (world, backend)) in enumerate(ways.items()):
        backend = "gloo" if backend and not check.cuda else backend
        out = check.work / f"group{number}"
        jobs = [Job(check.work / f"group{number}_{r}.txt", _steps, check, r, world, backend, out) for r in range(world)]
        codes = [job.end() for job in jobs]
        if any(codes):
            yield holds(f"{name}: ends", False, next(job.last_line() for job in jobs if job.process.exitcode))
            continue
        found[name] = json.loads(out.with_suffix(".json").read_text())
        if number and "alone" in found:
            pairs = zip(sum(found[name], []), sum(found["alone"], []), strict=True)
            gap = max(relative(a, b) for a, b in pairs)
            yield at_most(f"{name}: losses and gradient norms against one alone", gap, 1e-5 if world == 1 else 1e-4)


def _steps(check: Check, rank: int, world: int, backend: str | None, out: Path) -> None:
    """Train a few steps on this rank's part of the same batch; the first rank writes what they return."""
    device = torch.device("cuda", 0) if check.cuda else torch.device("cpu")
    if check.cuda:
        torch.cuda.set_device(device)
    if backend:
        dist.init_process_group(backend, init_method=f"file://{out}.store", rank=rank, world_size=world)
    bench = check.bench()
    model = net = bench.network(OURS).train()
    if backend:
        devices = [device] if check.cuda else None
        net = DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-4, 1.0), fused=True)
    recipe = Recipe(batch_size=SAMPLES, warm_iter=0)
    trainer = Trainer(net, optimizer, lambda *x: restr_loss(*x, LossConfig()), recipe, Ranks(device, rank, world))
    images, ids, masks = (x.tensor_split(world)[rank] for x in bench.inputs(OURS, SAMPLES))
    batch = {"image": images, "ids": ids, "mask": masks, "name": [""] * len(images)}
    values = [trainer.train_step([batch]) for _ in range(STEPS)]
    if rank == 0:
        out.with_suffix(".json").write_text(json.dumps([[x["loss"], x["grad_norm"]] for x in values]))
    if backend:
        dist.destroy_process_group()
