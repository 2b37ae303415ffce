"""Print the table of docs/FIDELITY.md: the largest deviation from the stored numbers of the authors' code.

    python benchmarks/fidelity.py

Weights, inputs and the authors' numbers are those in tests/data/.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.report import table
from models import build_restr, from_reference, to_reference
from models.loss import LossConfig, patch_labels, restr_loss
from models.reference import HEAD, config_from_reference, our_name, reference_config
from train.options import Recipe
from utils.cli import ArgumentParser, run_main
from utils.text import SPECIAL_WORDS, Vocabulary

DATA = Path(__file__).resolve().parents[1] / "tests/data"


def batch(step: int, size: int = 96, words: int = 40, samples: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 4 x 3 x size x size, masks bool 4 x 1 x size x size and ids int64 4 x 20 of a step.

    The curves in tests/data/ were made of these; the stored outputs are those of step 0. A bright square is the object;
    the first token says in which quadrant it is. RandomState is stable over NumPy's versions.
    """
    r = np.random.RandomState(1000 + step)
    image = r.randint(0, 256, (samples, 3, size, size)).astype(np.float32)
    mask = np.zeros((samples, 1, size, size), np.float32)
    ids = np.zeros((samples, 20), np.int64)
    for b in range(samples):
        q = r.randint(4)
        y, x = (q // 2) * (size // 2) + r.randint(0, size // 6), (q % 2) * (size // 2) + r.randint(0, size // 6)
        side = r.randint(size // 8, size // 3)
        image[b, :, y : y + side, x : x + side] = 255 - 20 * q
        mask[b, 0, y : y + side, x : x + side] = 1
        n = r.randint(2, 20)
        ids[b, 20 - n :] = r.randint(4, words, n)
        ids[b, 20 - n] = 4 + q
    return image.astype(np.uint8), mask > 0, ids


def model_rows(case: str) -> Iterator[tuple]:
    """Outputs, losses and gradients of the whole model at toy size."""
    tiny = torch.load(DATA / f"micro_{case}.pt", weights_only=True)
    model = from_reference(tiny["state_dict"], tiny["config"])
    image, mask, ids = map(torch.from_numpy, batch(0, size=64, words=24))
    pixel, patch = model(image, ids)
    losses = restr_loss(pixel, patch, mask, LossConfig(None if case == "nodecoder" else 0.1))
    losses["loss"].backward()
    found = {
        "vision encoder output": (model.vision.backbone.forward_features(model.normalise(image)), "encoder_v_out"),
        "language encoder output": (model.encode_text(ids), "encoder_l_out"),
        "pixel logits": (pixel, "pixel_pred"),
        "patch logits": (patch, "patch_pred"),
        "pixel loss": (losses["pixel"], "loss_pixel"),
        "patch loss": (losses.get("patch"), "loss_patch"),
        "loss": (losses["loss"], "loss"),
    }
    for point, (ours, name) in found.items():
        if ours is not None:
            theirs = torch.as_tensor(tiny[name])
            size = theirs.abs().max().item()
            yield f"{point}, {case}", "1e-5", f"{(ours - theirs).abs().max().item():.1e} (values up to {size:.2g})"
    parameters = dict(model.named_parameters())
    used = {name: gradient for name, gradient in tiny["grads"].items() if name not in HEAD}
    worst = max(((parameters[our_name(n)].grad - g).norm() / g.norm()).item() for n, g in used.items())
    yield f"gradients of {len(used)} parameters, relative to their norms, {case}", "1e-4", f"{worst:.1e}"
    wrong = (patch_labels(mask, tiny["patch_label"].shape[-2:], LossConfig()) != tiny["patch_label"]).sum()
    yield f"patch labels, {case}", "equal", f"{int(wrong)} of {tiny['patch_label'].numel()} differ"
    back = to_reference(model)
    same = [torch.equal(back[name], value) for name, value in tiny["state_dict"].items() if name not in HEAD]
    yield f"weights there and back, {case}", "equal", f"{sum(same)} of {len(same)} tensors equal"


def name_rows() -> Iterator[tuple]:
    """Names and parameter counts at the default size."""
    for case, entry in json.loads((DATA / "official_keys.json").read_text()).items():
        names = {name: tuple(shape) for name, shape in entry["shapes"].items()}
        with torch.device("meta"):
            model = build_restr(config_from_reference(reference_config(names, shared=case == "shared"), 12112))
        ours = {name: tuple(value.shape) for name, value in to_reference(model).items()}
        count = sum(p.numel() for p in model.parameters()) + entry["head"]
        equal, extra = sum(ours.get(n) == shape for n, shape in names.items()), len(set(ours) - set(names))
        yield f"names and shapes, {case}", "one to one", f"{equal} of {len(names)}, {extra} left over"
        yield f"parameters, {case}", f"{entry['n_params']:,}", f"{count:,}"


def schedule_row() -> tuple:
    """Learning rates of the polynomial schedule."""
    stored = json.loads((DATA / "schedule.json").read_text())["lr_poly"]
    args = stored["args"]
    ends = {"lr": args["base"], "end_lr": args["end"]}
    recipe = Recipe(**ends, num_steps=args["max_iter"], warm_iter=args["warm"], power=args["power"])
    rates = stored["step_to_lr"].items()
    worst = max(abs(args["base"] * recipe.lr_factor(int(step)) - rate) / (rate or 1) for step, rate in rates)
    return "learning rates, relative", "equal", f"{worst:.1e} over {len(rates)} steps"


def text_row() -> tuple:
    """Word ids."""
    same = []
    for case in json.loads((DATA / "text_cases.json").read_text()).values():
        words = [*SPECIAL_WORDS, *map(str, range(len(SPECIAL_WORDS), case["size"]))]  # numbers: no case has these words
        for word, i in case["words"].items():
            words[i] = word
        vocabulary = Vocabulary(words)
        ids = {expression: ids for expression, ids in case["ids"].items() if isinstance(ids, list)}
        same += [vocabulary.ids(expression).tolist() == numbers for expression, numbers in ids.items()]
    return "word ids", "equal", f"{sum(same)} of {len(same)} expressions equal"


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    models = [row for case in ("default", "shared", "nodecoder") for row in model_rows(case)]
    rows = [*models, *name_rows(), schedule_row(), text_row()]
    print(table(("point", "asked", "largest deviation measured"), rows))


if __name__ == "__main__":
    run_main(main)
