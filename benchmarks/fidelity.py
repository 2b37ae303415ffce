"""Print the table of docs/FIDELITY.md: the largest deviation from the stored numbers of the authors' code.

    python benchmarks/fidelity.py

Weights, inputs and the authors' numbers are those in tests/data/.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.curve_batches import batch
from models import build_restr, from_reference, to_reference
from models.loss import LossConfig, patch_labels, restr_loss
from models.reference import HEAD, config_from_reference, our_name, reference_config
from train.options import Recipe
from utils.cli import ArgumentParser, run_main
from utils.text import SPECIAL_WORDS, Vocabulary

DATA = Path(__file__).resolve().parents[1] / "tests/data"
CASES = ("default", "shared", "nodecoder")
ALPHA = 0.1


def main() -> None:
    """Print one row a point."""
    ArgumentParser(description=__doc__).parse_args()
    models = [row for case in CASES for row in model_rows(case)]
    rows = [*models, *name_rows(), schedule_row(), text_row()]
    print("| point | asked | largest deviation measured |\n|---|---|---|")
    for point, asked, found in rows:
        print(f"| {point} | {asked} | {found} |")


def model_rows(case: str):
    """Outputs, losses and gradients of the whole model at toy size."""
    tiny = torch.load(DATA / f"micro_{case}.pt", weights_only=True)
    model = from_reference(tiny["state_dict"], tiny["config"])
    image, mask, ids = map(torch.from_numpy, batch(0, size=64, words=24))
    tokens = model.vision.backbone.forward_features(model.normalise(image))
    pixel, patch = model(image, ids)
    losses = restr_loss(pixel, patch, mask, LossConfig(None if case == "nodecoder" else ALPHA))
    losses["loss"].backward()
    pairs = {
        "vision encoder output": (tokens, tiny["encoder_v_out"]),
        "language encoder output": (model.encode_text(ids), tiny["encoder_l_out"]),
        "pixel logits": (pixel, tiny["pixel_pred"]),
        "patch logits": (patch, tiny["patch_pred"]),
        "pixel loss": (losses["pixel"], tiny["loss_pixel"]),
        "loss": (losses["loss"], tiny["loss"]),
    }
    if "patch" in losses:
        pairs["patch loss"] = losses["patch"], tiny["loss_patch"]
    for point, (ours, theirs) in pairs.items():
        theirs = torch.as_tensor(theirs)
        size = theirs.abs().max().item()
        yield f"{point}, {case}", "1e-5", f"{(ours - theirs).abs().max().item():.1e} (values up to {size:.2g})"
    parameters = dict(model.named_parameters())
    used = {name: gradient for name, gradient in tiny["grads"].items() if name not in HEAD}
    worst = max(((parameters[our_name(n)].grad - g).norm() / g.norm()).item() for n, g in used.items())
    yield f"gradients of {len(used)} parameters, relative to their norms, {case}", "1e-4", f"{worst:.1e}"
    wrong = (patch_labels(mask, tiny["patch_label"].shape[-2:], LossConfig()) != tiny["patch_label"]).sum()
    yield f"patch labels, {case}", "equal", f"{int(wrong)} of {tiny['patch_label'].numel()} differ"
    back = to_reference(model)
    same = sum(torch.equal(back[name], value) for name, value in tiny["state_dict"].items() if name not in HEAD)
    total = len(set(tiny["state_dict"]) - set(HEAD))
    yield f"weights there and back, {case}", "equal", f"{same} of {total} tensors equal"


def name_rows():
    """Names and parameter counts at the default size."""
    official = json.loads((DATA / "official_keys.json").read_text())
    for case, entry in official.items():
        names = {name: tuple(shape) for name, shape in entry["shapes"].items()}
        state = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
        with torch.device("meta"):
            model = build_restr(config_from_reference(reference_config(state, shared=case == "shared"), 12112))
        ours = {name: tuple(value.shape) for name, value in to_reference(model).items()}
        count = sum(p.numel() for p in model.parameters()) + entry["head"]
        equal, extra = sum(ours.get(n) == shape for n, shape in names.items()), len(set(ours) - set(names))
        found = f"{equal} of {len(names)}, {extra} left over"
        yield f"names and shapes, {case}", "one to one", found
        yield f"parameters, {case}", f"{entry['n_params']:,}", f"{count:,}"


def schedule_row():
    """Learning rates of the polynomial schedule."""
    stored = json.loads((DATA / "schedule.json").read_text())["lr_poly"]
    args = stored["args"]
    ends = {"lr": args["base"], "end_lr": args["end"]}
    recipe = Recipe(**ends, num_steps=args["max_iter"], warm_iter=args["warm"], power=args["power"])
    rates = stored["step_to_lr"].items()
    worst = max(abs(args["base"] * recipe.lr_factor(int(step)) - rate) / (rate or 1) for step, rate in rates)
    return "learning rates, relative", "equal", f"{worst:.1e} over {len(rates)} steps"


def text_row():
    """Word ids."""
    cases = json.loads((DATA / "text_cases.json").read_text())
    total = same = 0
    for case in cases.values():
        words = [*SPECIAL_WORDS, *map(str, range(len(SPECIAL_WORDS), case["size"]))]  # numbers: no case has these words
        for word, i in case["words"].items():
            words[i] = word
        vocabulary = Vocabulary(words)
        for expression, ids in case["ids"].items():
            if isinstance(ids, list):
                total += 1
                same += vocabulary.ids(expression).tolist() == ids
    return "word ids", "equal", f"{same} of {total} expressions equal"


if __name__ == "__main__":
    run_main(main)
