"""The end of `make demo`: its table, and whether the model learned enough.

    python tools/demo_report.py --out demo --seconds 600

Exit code 2 if the model fell short of what is expected.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import ArgumentParser, run_main
from utils.errors import InputError
from utils.files.reading import read_json

ROWS = ("val", "testA", "testB", "val_rotated")
MIN_OIOU, MIN_LOSS = 75.0, 50.0  # percent


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
    minutes, seconds = divmod(args.seconds, 60)
    page = results / "val/report.html"
    print(f"predictions: {results / 'val' / 'vis'}, all in one page: {page}; this run took {minutes} min {seconds} s")
    if oiou < MIN_OIOU or loss < MIN_LOSS:
        raise InputError("the demo's model fell short of what is expected: was the code of models/ changed?")


if __name__ == "__main__":
    run_main(main)
