"""Speed and memory of the full model at 480 x 480 against the same work done the authors' way, on one machine.

    python benchmarks/bench_model.py
    python benchmarks/bench_model.py --what train,eval,files,decoder,saved --batch 2 --repeats 3
    python benchmarks/bench_model.py --what files --images 4 --repeats 5 --device cuda

train: a step (forward, loss, backward, AdamW) and its peak memory, in a fresh process.
eval: expressions a second, all in one image. files: the same from files to scores, with 7.5 expressions an image
(unc val: 7.2). decoder: the decoder alone, forward and backward. saved: what autograd stores of a sample.
The two ways (benchmarks/ways.py) take turns, times are medians. Weights are random; ways that disagree are an error.
"""

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks.photos import make_set
from benchmarks.report import fresh_process, medians, seconds, table, where
from benchmarks.ways import AUTHORS, EXPRESSIONS, OURS, Bench, Way
from eval.evaluator import EvalSettings, evaluate
from models.inference import resize_and_crop, to_canvas
from models.loss import LossConfig, restr_loss
from prepare.writer import BuildOptions, build
from train.process import settle_memory
from utils.cli import ArgumentParser, run_main
from utils.device import Ranks, autocast, choose_device
from utils.errors import InputError
from utils.prepared import PreparedSplit

WAYS = {"authors": AUTHORS, "ours": OURS, "checkpointed": Way("ours with --grad_checkpoint", checkpointed=True)}
TOLERANCE = 1e-4  # on logits, float32
CLOSE = 1e-5  # share of a sample's pixels that may differ: logits that float32 cannot tell from the threshold
STEPS = 3  # timed in each process
Row = tuple[str, float, float, float]


def row(what: str, values: dict[str, float], ours: str = "ours") -> Row:
    """The authors' number, ours, and ours by theirs."""
    return what, values["authors"], values[ours], values[ours] / values["authors"]


def print_step(bench: Bench, way: str, size: int) -> None:
    """Median seconds of a training step after the first; on a GPU, its peak memory in MB, too."""
    if way != "authors" and bench.device.type == "cpu":
        settle_memory()  # as train_restr.py does
    print(seconds({way: bench.step(WAYS[way], size)}, STEPS)[way])
    if bench.device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)


def bench_train(bench: Bench, args) -> list[Row]:
    """Seconds and peak GB of a step each way, in processes of their own, with memory handled as it is there."""

    def step_of(way: str) -> tuple[float, float]:
        flags = ["--step_of", way, "--batch", args.batch, "--device", args.device, *["--tiny"] * args.tiny]
        _, peak, (time_of, *gpu_peak) = fresh_process(__file__, *flags)
        return float(time_of) / args.batch, float(*gpu_peak or [peak]) / 1e3

    found = medians({way: lambda way=way: step_of(way) for way in WAYS}, args.repeats)
    times, peaks = ({way: values[i] for way, values in found.items()} for i in (0, 1))
    return [
        row(f"training step, batch {args.batch}, s a sample", times),
        row(f"peak memory, batch {args.batch}, GB", peaks),
        row("the same with --grad_checkpoint: s a sample", times, "checkpointed"),
        row("and its peak memory, GB", peaks, "checkpointed"),
    ]


def bench_eval(bench: Bench, args) -> list[Row]:
    """Ours encodes the image once for all its expressions; the authors' way once for each."""
    authors, ours = bench.evaluation(1, {"fp32": None}, args.repeats)
    if not ours["logits_differ"] <= TOLERANCE:
        raise InputError(f"the two ways differ by {ours['logits_differ']:.1e} on the logits, more than {TOLERANCE}")
    rates = {"authors": authors["per_s"], "ours": ours["per_s"]}
    return [row(f"evaluation, {EXPRESSIONS} expressions an image, expressions/s", rates)]


@torch.inference_mode()
def authors_scores(reference, model, split: PreparedSplit, device: torch.device) -> list[tuple[int, int]]:
    """I and U of each expression, one at a time; `model` only tells how images are normalised."""
    scores = []
    for index in range(len(split)):
        image = torch.from_numpy(split.image(index)).to(device)
        ids = torch.from_numpy(split.text(index)[0])[None].to(device)
        logits = reference(to_canvas(model, image), ids)[0]
        found = resize_and_crop(logits, *image.shape[:2])[0, 0] >= EvalSettings.threshold
        mask = torch.from_numpy(split.mask(index)).to(device)
        scores.append(((found & mask).sum().item(), (found | mask).sum().item()))
    return scores


def bench_files(bench: Bench, args) -> list[Row]:
    """Evaluation of a split on the disk; ours is eval/evaluator.py as eval/evaluate.py calls it."""
    reference, model = bench.network(AUTHORS), bench.network(OURS)
    with tempfile.TemporaryDirectory() as scratch:
        root = make_set(Path(scratch), args.images, split="val")
        size = bench.config.vision.image_size
        split = PreparedSplit(build(BuildOptions(root, "unc", "val", size, workers=1)).folder, "val")
        work = {
            "authors": lambda: authors_scores(reference, model, split, bench.device),
            "ours": lambda: evaluate(model, split, ranks=Ranks(bench.device), progress=False),
        }
        ours = [(score.intersection, score.union) for score in work["ours"]()]
        pairs = zip(work["authors"](), ours, strict=True)
        differ = max(abs(a - b) for theirs, ours in pairs for a, b in zip(theirs, ours, strict=True))
        if differ > CLOSE * (pixels := split.mask(0).size):
            raise InputError(f"the two ways differ by {differ} of {pixels} pixels in a sample: nothing was timed")
        rates = {way: len(split) / time_of for way, time_of in seconds(work, args.repeats, warm=0).items()}
    what = f"evaluation from files to scores, {len(split)} expressions of {args.images} images, expressions/s"
    return [row(what, rates), ("largest difference of a sample's I or U, pixels", "", differ, "")]


def bench_decoder(bench: Bench, args) -> list[Row]:
    """Forward and backward from patch features to the sum of the logits."""
    reference, ours = bench.network(AUTHORS), bench.network(OURS)
    shape = args.batch, ours.grid[0] * ours.grid[1], ours.vision.width
    v, p = (torch.randn(shape, device=bench.device, requires_grad=True) for _ in range(2))
    logits = torch.randn(shape[:2], device=bench.device)

    def upsample_first() -> Tensor:
        maps = torch.cat([v, logits.unsqueeze(-1) * p], -1).transpose(1, 2).unflatten(2, ours.grid)
        return reference.decode(maps)

    ways = {"authors": upsample_first, "ours": lambda: ours.decoder(v, p, logits)}
    torch.testing.assert_close(ways["ours"](), upsample_first(), rtol=1e-4, atol=1e-4)
    forward = seconds({name: torch.no_grad()(run) for name, run in ways.items()}, args.repeats)
    both = seconds({name: lambda run=run: run().sum().backward() for name, run in ways.items()}, args.repeats)
    return [
        row("decoder forward, s a sample", {name: value / args.batch for name, value in forward.items()}),
        row("decoder forward and backward, s a sample", {name: value / args.batch for name, value in both.items()}),
    ]


def saved_bytes(bench: Bench, way: Way, network, size: int, amp: str | None) -> int:
    """What autograd stores of `size` samples between forward and backward, weights and their casts included."""
    sizes = {}  # by address, so that nothing is counted twice

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, ids, masks = (x.to(bench.device) for x in bench.inputs(way, size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with autocast(bench.device, amp):
            outputs = network(images, ids)
        loss = restr_loss(*outputs, masks, LossConfig())["loss"]  # while it lives, no address is used again
    assert loss.isfinite()
    return sum(sizes.values())


def bench_saved(bench: Bench, args) -> list[Row]:
    """MB of one sample: what is stored of two, less what is stored of one. A GPU holds nearly the same."""
    rows = []
    for precision, amp in (("float32", None), ("bfloat16 autocast", "bf16")):
        saved = {}
        for name, way in WAYS.items():
            network = bench.network(way)
            one, two = (saved_bytes(bench, way, network, size, amp) for size in (1, 2))
            saved[name] = (two - one) / 1e6
        rows.append(row(f"saved activations, {precision}, MB a sample", saved))
        rows.append(row("the same with --grad_checkpoint", saved, "checkpointed"))
    return rows


BENCHES = {bench.__name__[6:]: bench for bench in (bench_train, bench_eval, bench_files, bench_decoder, bench_saved)}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--what", default=",".join(BENCHES), metavar="NAMES", help="measurements, with commas")
    parser.add_argument("--batch", type=int, default=2, help="samples in a training step")
    parser.add_argument("--images", type=int, default=2, help="images of the split in files")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way after the first")
    parser.add_argument("--tiny", action="store_true", help="toy model, which shows that the script runs")
    parser.add_argument("--step_of", choices=WAYS, help="way of which one step is timed, instead of all that")
    args = parser.parse_args()
    bench = Bench(choose_device(args.device), args.tiny)
    if args.step_of:
        print_step(bench, args.step_of, args.batch)
        return
    chosen = args.what.split(",")
    if unknown := set(chosen) - set(BENCHES):
        raise InputError(f"--what {','.join(sorted(unknown))}: choose from {','.join(BENCHES)}")
    print(f"{where(bench.device.type)}, {torch.get_num_threads()} threads, median of {args.repeats}\n")
    rows = [row for name in chosen for row in BENCHES[name](bench, args)]
    print(table(("what", "authors' way", "ours", "ours / authors'"), rows))


if __name__ == "__main__":
    run_main(main)
