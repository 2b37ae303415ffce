"""The end of `make demo`: its table, examples.jpg with what the model finds, and whether it learned enough.

    python tools/demo_report.py --out demo --seconds 600

Exit code 2 if the model fell short of what is expected.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from eval.visualise import grid, highlight
from models import load_restr
from models.inference import segment
from tools.shapes.dataset import IMAGES
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.files.images import read_image
from utils.files.reading import read_json
from utils.files.writing import atomic_write

ROWS = ("val", "testA", "testB", "val_rotated")
MIN_OIOU, MIN_LOSS = 75.0, 50.0  # percent
# Kinds of expressions, of which examples.jpg shows the best-found one each: colour, size, position, relation.
EXAMPLES = (r"^(the )?\w+ square$", "big .* ring", "small .* triangle$", "on the", "at the", " of the ")
EXAMPLE_WIDTH = 256  # pixels


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="the demo's folder")
    parser.add_argument("--seconds", type=int, required=True, help="duration of the demo, for the last line")
    args = parser.parse_args()
    results = args.out / "results"
    rows = {name: read_json(results / name / "metrics.json", "result", "run the demo again") for name in ROWS}
    print("\npercent              oIoU    mIoU  Prec@0.5  Prec@0.7  Prec@0.9  expressions")
    for name, row in rows.items():
        prec = "".join(f"{row['prec'][x]:10.2f}" for x in ("0.5", "0.7", "0.9"))
        print(f"unc {name:13}{row['oIoU']:8.2f}{row['mIoU']:8.2f}{prec}{row['n_samples']:13d}")
    oiou, loss = rows["val"]["oIoU"], rows["val"]["oIoU"] - rows["val_rotated"]["oIoU"]
    print(f"oIoU on val: {oiou:.2f} ({MIN_OIOU:.0f} or more is expected)")
    print(f"lost if each image's expressions are rotated among its refs: {loss:.2f} ({MIN_LOSS:.0f} or more)")
    shown, page = args.out / "examples.jpg", results / "val/report.html"
    with atomic_write(shown) as file:
        grid(list(examples(args.out)), 3).save(file, "JPEG", quality=92)
    minutes, seconds = divmod(args.seconds, 60)
    print(f"predictions: six in {shown}, more in {results / 'val/vis'}, all in {page}")
    print(f"this run took {minutes} min {seconds} s")
    if oiou < MIN_OIOU or loss < MIN_LOSS:
        raise InputError("the demo's model fell short of what is expected: was the code of models/ changed?")


def examples(out: Path) -> Iterator[tuple[str, np.ndarray]]:
    """For each kind an expression of val, and its image, uint8 H x W x 3, where what the model leaves out is dark.

    The images differ and are in landscape format. They are enlarged, and so are the logits that the masks come from.
    """
    model = load_restr(out / "weights/demo", "cpu")
    samples = [json.loads(line) for line in (out / "results/val/samples.jsonl").read_text().splitlines()]
    samples.sort(key=lambda sample: sample["intersection"] / max(1, sample["union"]), reverse=True)
    images = {sample["image_name"]: read_image(out / IMAGES / f"{sample['image_name']}.jpg") for sample in samples}
    wide = {name: image for name, image in images.items() if image.shape[1] > image.shape[0]}
    for kind in EXAMPLES:
        fitting = (s for s in samples if s["image_name"] in wide and re.search(kind, s["sentence"]))
        if best := next(fitting, None):
            image = wide.pop(best["image_name"])
            logits = segment(model, image, best["sentence"]).logits
            size = EXAMPLE_WIDTH, round(EXAMPLE_WIDTH * image.shape[0] / image.shape[1])
            pixels, scores = (np.asarray(Image.fromarray(x).resize(size, Image.BICUBIC)) for x in (image, logits))
            yield best["sentence"], highlight(pixels, scores > 0)


if __name__ == "__main__":
    run_main(main)
