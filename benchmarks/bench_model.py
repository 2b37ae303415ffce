"""Speed and memory of the full model at 480 x 480 against the same work done the authors' way, on one machine.

    python benchmarks/bench_model.py
    python benchmarks/bench_model.py --what train,eval,decoder,saved --batch 2 --repeats 3

train: a step (forward, loss, backward, AdamW) and its peak memory. eval: expressions a second, all in one image.
decoder: the decoder alone, forward and backward. saved: what autograd stores of a sample.
The two ways take turns, times are medians; a training step is timed, and its peak memory read, in a fresh process.
Weights are random and stochastic depth is off; ways that disagree are an error. The authors' way is
benchmarks/plain_restr.py: attention with an explicit softmax, a decoder that upsamples before it projects.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.plain_restr import PlainReSTR
from benchmarks.report import peak_mb, table, where
from models.config import ReSTRConfig
from models.loss import LossConfig, restr_loss
from models.reference import reference_config, to_reference
from models.restr import ReSTR, build_restr
from models.vision import vision_config
from train.loop import settle_memory
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.text import TEXT_LENGTH

WAYS = ("reference", "ours", "checkpointed")  # checkpointed: ours with --grad_checkpoint
TOLERANCE = 1e-4  # on logits, float32
STEPS = 3  # timed in each process
Batch = tuple[Tensor, Tensor, Tensor]
Row = tuple[str, float, float, float]


def build(way: str, device: torch.device) -> tuple[ReSTR | PlainReSTR, torch.optim.Optimizer]:
    """The model one of WAYS, with the same weights at each call, and its optimiser."""
    torch.manual_seed(0)
    model = build_restr(ReSTRConfig(vision_config("vit_base_patch16_384", (480, 480)))).eval().to(device)
    if way == "reference":
        state = {name: tensor.detach().clone().requires_grad_() for name, tensor in to_reference(model).items()}
        return PlainReSTR(state, reference_config(state)), torch.optim.AdamW(state.values(), lr=1e-5)
    model.set_grad_checkpointing(way == "checkpointed")
    return model, torch.optim.AdamW(model.parameter_groups(1e-5, 0.1), fused=True)


def make_batch(size: int, device: torch.device) -> Batch:
    """Images (normalised), word ids and masks of `size` samples."""
    torch.manual_seed(1)
    images, masks = torch.rand(size, 3, 480, 480) * 2 - 1, torch.rand(size, 1, 480, 480) < 0.2
    ids = torch.randint(1, 12112, (size, TEXT_LENGTH))
    ids[:, 8:] = 0
    return images.to(device), ids.to(device), masks.to(device)


def train_step(model, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One step; returns the loss, which waits for the device."""
    images, ids, masks = batch
    optimizer.zero_grad(set_to_none=True)
    loss = restr_loss(*model(images, ids), masks, LossConfig())["loss"]
    loss.backward()
    optimizer.step()
    return loss.item()


def seconds(
    work: dict[str, Callable[[], object]], repeats: int, device: torch.device, warm: int = 1
) -> dict[str, float]:
    """Median seconds of each of `work`, which take turns; the first `warm` rounds are not counted."""
    times = {name: [] for name in work}
    for _ in range(repeats + warm):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: median(values[warm:]) for name, values in times.items()}


def own_process(way: str, args) -> tuple[float, float]:
    """Seconds and peak GB of a training step one way, in a process of its own, with memory handled as it is there."""
    command = [sys.executable, __file__, "--step_of", way, "--batch", str(args.batch), "--device", args.device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    time_of, peak = map(float, done.stdout.split())
    return time_of, peak


def print_step(way: str, args) -> None:
    """Median seconds of a training step after the first, and the peak of the process in GB."""
    device = torch.device(args.device)
    if way != "reference" and device.type == "cpu":
        settle_memory()  # as train_restr.py does
    model, optimizer = build(way, device)
    batch = make_batch(args.batch, device)
    steps = {way: lambda: train_step(model, optimizer, batch)}  # the optimiser has its moments from the first one on
    time_of = seconds(steps, STEPS, device)[way]
    print(time_of, torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_mb() / 1e3)


def check_equal(reference, ours, batch: Batch) -> None:
    """Raises InputError unless both ways give the same logits."""
    with torch.no_grad():
        pairs = zip(reference(*batch[:2]), ours(*batch[:2]), strict=True)
        worst = max((a - b).abs().max().item() for a, b in pairs)
    if not worst <= TOLERANCE:
        raise InputError(f"the two ways differ by {worst:.1e} on the logits, more than {TOLERANCE}: nothing was timed")


def bench_train(args, device: torch.device) -> list[Row]:
    """Each way in processes of its own, which take turns."""
    # First of all: a child's peak, as getrusage counts it, is never below what its parent held when it started.
    found = [{way: own_process(way, args) for way in WAYS} for _ in range(args.repeats)]
    times, peaks = ({way: median(turn[way][i] for turn in found) for way in WAYS} for i in (0, 1))
    (reference, _), (ours, _) = build("reference", device), build("ours", device)
    check_equal(reference, ours, make_batch(args.batch, device))
    a_sample = {way: value / args.batch for way, value in times.items()}
    return [
        _row(f"training step, batch {args.batch}, s a sample", a_sample),
        _row(f"peak memory, batch {args.batch}, GB", peaks),
        _row("the same with --grad_checkpoint: s a sample", {**a_sample, "ours": a_sample["checkpointed"]}),
        _row("and its peak memory, GB", {**peaks, "ours": peaks["checkpointed"]}),
    ]


def bench_eval(args, device: torch.device) -> list[Row]:
    """Ours encodes the image once for all its expressions; the authors' way once for each."""
    (reference, _), (ours, _) = build("reference", device), build("ours", device)
    image, ids = make_batch(1, device)[0], make_batch(args.expressions, device)[1]
    n = len(ids)

    @torch.no_grad()
    def all_expressions() -> None:
        v = ours.encode_image(image).expand(n, -1, -1)
        ours.segment_features(v, ours.encode_text(ids), ids)

    check_equal(reference, ours, (image, ids[:1]))
    work = {"reference": torch.no_grad()(lambda: reference(image, ids[:1])), "ours": all_expressions}
    time_of = seconds(work, args.repeats, device)
    time_of["ours"] /= n
    return [_row(f"evaluation, {n} expressions an image, expressions/s", {k: 1 / v for k, v in time_of.items()})]


def bench_decoder(args, device: torch.device) -> list[Row]:
    """Forward and backward from patch features to the sum of the logits."""
    (reference, _), (ours, _) = build("reference", device), build("ours", device)
    v, p = (torch.randn(args.batch, 900, 768, device=device, requires_grad=True) for _ in range(2))
    logits = torch.randn(args.batch, 900, device=device)

    def upsample_first() -> Tensor:
        maps = torch.cat([v, logits.unsqueeze(-1) * p], -1).transpose(1, 2).reshape(args.batch, -1, 30, 30)
        return reference.decode(maps)

    def project_first() -> Tensor:
        return ours.decoder(v, p, logits)

    torch.testing.assert_close(project_first(), upsample_first(), rtol=1e-4, atol=1e-4)
    ways = {"reference": upsample_first, "ours": project_first}
    forward = seconds({name: torch.no_grad()(run) for name, run in ways.items()}, args.repeats, device)
    both = seconds({name: lambda run=run: run().sum().backward() for name, run in ways.items()}, args.repeats, device)
    return [
        _row("decoder forward, s a sample", {name: value / args.batch for name, value in forward.items()}),
        _row("decoder forward and backward, s a sample", {name: value / args.batch for name, value in both.items()}),
    ]


def saved_bytes(model, size: int, device: torch.device, amp: bool) -> int:
    """What autograd stores of `size` samples between forward and backward, weights and their casts included."""
    sizes = {}  # by address, so that nothing is counted twice

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, ids, masks = make_batch(size, device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            outputs = model(images, ids)
        loss = restr_loss(*outputs, masks, LossConfig())["loss"]  # while it lives, no address is used again
    assert loss.isfinite()
    return sum(sizes.values())


def saved_mb(way: str, device: torch.device, amp: bool) -> float:
    """MB of one sample: what is stored of two, less what is stored of one."""
    model, _ = build(way, device)
    return (saved_bytes(model, 2, device, amp) - saved_bytes(model, 1, device, amp)) / 1e6


def bench_saved(args, device: torch.device) -> list[Row]:
    """Activations between forward and backward; a GPU holds the same but for small differences in autocast."""
    rows = []
    for precision, amp in (("float32", False), ("bfloat16 autocast", True)):
        saved = {way: saved_mb(way, device, amp) for way in WAYS}
        rows.append(_row(f"saved activations, {precision}, MB a sample", saved))
        rows.append(_row("the same with --grad_checkpoint", {**saved, "ours": saved["checkpointed"]}))
    return rows


def _row(what: str, values: dict[str, float]) -> Row:
    return what, values["reference"], values["ours"], values["ours"] / values["reference"]


BENCHES = {"train": bench_train, "eval": bench_eval, "decoder": bench_decoder, "saved": bench_saved}


def parse_args():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--what", default=",".join(BENCHES), metavar="NAMES", help="measurements, with commas")
    parser.add_argument("--batch", type=int, default=2, help="samples in a training step")
    parser.add_argument("--expressions", type=int, default=7, help="expressions of one image (unc val: 7.2)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way after the first")
    parser.add_argument("--step_of", choices=WAYS, help="way of which one step is timed, instead of all that")
    args = parser.parse_args()
    if unknown := set(args.what.split(",")) - set(BENCHES):
        raise InputError(f"--what {','.join(sorted(unknown))}: choose from {','.join(BENCHES)}")
    return args


def main() -> None:
    args = parse_args()
    if args.step_of:
        print_step(args.step_of, args)
        return
    device = torch.device(args.device)
    print(f"{where(args.device)}, {torch.get_num_threads()} threads, median of {args.repeats}\n")
    chosen = [name for name in BENCHES if name in args.what.split(",")]  # training first: its memory is measured while
    rows = [row for name in chosen for row in BENCHES[name](args, device)]  # this process is small
    print(table(("what", "authors' way", "ours", "ours / authors'"), rows))


if __name__ == "__main__":
    run_main(main)
