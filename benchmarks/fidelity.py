"""Print the table of docs/FIDELITY.md: the largest deviation from the stored numbers of the authors' code.

    python benchmarks/fidelity.py --reference ../shared/reference

The numbers are no part of the repository.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models import build_restr, from_reference, to_reference
from models.loss import LossConfig, patch_labels, restr_loss
from models.reference import HEAD, config_from_reference, our_name, reference_config
from train.schedule import Schedule
from utils.cli import ArgumentParser, run_main
from utils.text import Vocabulary


def main() -> None:
    """Print one row a point."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path("../shared/reference"), help="folder of stored numbers")
    folder = parser.parse_args().reference
    tiny = torch.load(folder / "tiny_default.pt", weights_only=True)
    print("| point | asked | largest deviation measured |\n|---|---|---|")
    for point, asked, found in [*model_rows(tiny), *name_rows(folder), schedule_row(folder), text_row(folder)]:
        print(f"| {point} | {asked} | {found} |")


def model_rows(tiny: dict):
    """Outputs, losses and gradients of the whole model at toy size."""
    model = from_reference(tiny["state_dict"], tiny["config"])
    tokens = model.vision.backbone.forward_features(tiny["image"])
    pixel, patch = model(tiny["image"], tiny["text"])
    losses = restr_loss(pixel, patch, tiny["label"], LossConfig(tiny["alpha_loc"]))
    losses["loss"].backward()
    pairs = {
        "vision encoder output": (tokens, tiny["encoder_v_out"]),
        "language encoder output": (model.encode_text(tiny["text"]), tiny["encoder_l_out"]),
        "pixel logits": (pixel, tiny["pixel_pred"]),
        "patch logits": (patch, tiny["patch_pred"]),
        "pixel loss": (losses["pixel"], tiny["loss_pixel"]),
        "patch loss": (losses["patch"], tiny["loss_patch"]),
        "loss": (losses["loss"], tiny["loss"]),
    }
    for point, (ours, theirs) in pairs.items():
        size = theirs.abs().max().item()
        yield point, "1e-5", f"{(ours - theirs).abs().max().item():.1e} (values up to {size:.2g})"
    parameters = dict(model.named_parameters())
    used = {name: gradient for name, gradient in tiny["grads"].items() if name not in HEAD}
    worst = max(((parameters[our_name(n)].grad - g).norm() / g.norm()).item() for n, g in used.items())
    yield f"gradients of {len(used)} parameters, relative to their norms", "1e-4", f"{worst:.1e}"
    wrong = (patch_labels(tiny["label"], tiny["patch_label"].shape[-2:], LossConfig()) != tiny["patch_label"]).sum()
    yield "patch labels", "equal", f"{int(wrong)} of {tiny['patch_label'].numel()} differ"
    back = to_reference(model)
    same = sum(torch.equal(back[name], value) for name, value in tiny["state_dict"].items() if name not in HEAD)
    yield "weights there and back", "equal", f"{same} of {len(tiny['state_dict']) - len(HEAD)} tensors equal"


def name_rows(folder: Path):
    """Names and parameter counts at the default size."""
    official = json.loads((folder / "official_keys.json").read_text())
    for case, entry in official.items():
        names = {name: tuple(shape) for name, shape, _ in entry["keys"]}
        state = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
        with torch.device("meta"):
            model = build_restr(config_from_reference(reference_config(state, shared=case == "shared"), 12112))
        ours = {name: tuple(value.shape) for name, value in to_reference(model).items()}
        count = sum(p.numel() for p in model.parameters()) + entry["head"]
        equal, extra = sum(ours.get(n) == shape for n, shape in names.items()), len(set(ours) - set(names))
        found = f"{equal} of {len(names)}, {extra} left over"
        yield f"names and shapes, {case}", "one to one", found
        yield f"parameters, {case}", f"{entry['n_params']:,}", f"{count:,}"


def schedule_row(folder: Path):
    """Learning rates of the polynomial schedule."""
    stored = json.loads((folder / "schedule.json").read_text())["lr_poly"]
    args = stored["args"]
    schedule = Schedule(args["base"], args["end"], args["max_iter"], args["warm"], args["power"])
    rates = stored["step_to_lr"].items()
    worst = max(abs(args["base"] * schedule.factor(int(step)) - rate) / (rate or 1) for step, rate in rates)
    return "learning rates, relative", "equal", f"{worst:.1e} over {len(rates)} steps"


def text_row(folder: Path):
    """Word ids."""
    cases = json.loads((folder / "text_cases.json").read_text())
    total = same = 0
    for name, sentences in cases.items():
        vocabulary = Vocabulary.load(folder.parent / f"vocabulary/vocabulary_{name}.txt")
        for sentence, ids in sentences.items():
            if isinstance(ids, list):
                total += 1
                same += vocabulary.ids(sentence).tolist() == ids
    return "word ids", "equal", f"{same} of {total} expressions equal"


if __name__ == "__main__":
    run_main(main)
