"""Prepare a model for the Hugging Face hub, and upload it if you say so.

    python tools/push_to_hub.py --checkpoint weights/restr_unc/best.pth --repo owner/restr-refcoco        # writes files
    python tools/push_to_hub.py --checkpoint weights/restr_unc/best.pth --repo owner/restr-refcoco --yes  # uploads them

The folder hub/NAME, or --out, gets model.safetensors, config.json, vocabulary.txt (of a text encoder of transformers:
tokenizer.json) and README.md, a model card with the results of eval/evaluate.py: those beside the checkpoint
(eval_*/metrics.json), or --metrics. Without --yes nothing leaves this machine. Afterwards anybody can say
load_restr("hf://owner/restr-refcoco"), or --checkpoint with the same.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from eval.metrics import format_table
from eval.results import Result, find_files, read_result
from models.checkpoint import (
    FORMAT,
    Checkpoint,
    checkpoint_file,
    checkpoint_values,
    file_sha256,
    read_checkpoint,
    tokeniser_of,
)
from models.config import TextEncoderConfig
from models.restr import check_weights
from utils.cli import ArgumentParser, run_main
from utils.datasets import is_public, title
from utils.errors import InputError, one_line
from utils.files.reading import read_json
from utils.files.writing import atomic_write
from utils.hub import CONFIG, TOKENISER, VOCABULARY, WEIGHTS, write_files

CARD = "README.md"
FILES = (WEIGHTS, CONFIG, VOCABULARY, TOKENISER, CARD)
METRICS = ("oIoU", "mIoU")
TEXT = """---
{data}
---

# {name}

ReSTR ([Kim et al., CVPR 2022](https://arxiv.org/abs/2203.16768)): an image and an English expression to the mask of
the region that the expression refers to. This one was trained{trained} with an independent PyTorch implementation,
which reads it:

```python
from models import load_restr

segmenter = load_restr("hf://{repo}")
mask = segmenter.segment("photo.jpg", "woman in gray shirt")  # bool, height x width
```

The model has {numbers:,} numbers, {words} and takes images at {height} x {width} (height x width).

## Results

{results}
"""
NO_RESULTS = "None: it was not evaluated."
RESULTS = """In percent. oIoU is the sum of all intersections over the sum of all unions, mIoU the mean of each sample's
IoU. Each was computed by eval/evaluate.py from these weights, in a checkpoint with the SHA-256
{sha256}.

```
{table}
```"""


def parse_args(arguments: list[str] | None) -> Namespace:
    """The command line. Raises InputError for a name that the hub does not take."""
    parser = ArgumentParser(prog="push_to_hub.py", description=__doc__)
    file = "what train_restr.py wrote, or the folder of its best.pth"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help=file)
    parser.add_argument("--repo", metavar="OWNER/NAME", required=True, help="name of the model on the hub")
    metrics = "metrics.json of this checkpoint, or folders of them (default: eval_* beside the checkpoint)"
    parser.add_argument("--metrics", type=Path, nargs="+", metavar="PATH", help=metrics)
    parser.add_argument("--license", default="mit", help="licence of the weights, by the hub's name of it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: hub/NAME)")
    parser.add_argument("--private", action="store_true", help="make the model visible to you alone, if it is new")
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing leaves this machine")
    args = parser.parse_args(arguments)
    with suppress(HFValidationError):
        validate_repo_id(args.repo)
        if "/" in args.repo:
            return args
    raise InputError(f"--repo {one_line(args.repo)}: is no name of a model; write owner/name")


def main(arguments: list[str] | None = None) -> None:
    """Write the folder; upload it with --yes."""
    args = parse_args(arguments)
    path, folder = checkpoint_file(args.checkpoint), args.out or Path("hub", args.repo.partition("/")[2])
    checkpoint = read_checkpoint(path)
    if checkpoint.vocabulary is None:
        advice = "python -m models.convert adds one to a file of the authors' code"
        raise InputError(f"{path}: has no vocabulary; {advice}")
    checkpoint.training = None  # of last.pth
    tokeniser_of(checkpoint, path)
    try:
        check_weights(checkpoint.config, checkpoint.weights)
    except InputError as error:
        raise InputError(f"{path}: the weights do not fit its configuration: {error}") from None
    sha256 = file_sha256(path)
    card = card_of(args.repo, args.license, checkpoint, sha256, list(results_of(path, sha256, args.metrics)))
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, checkpoint_values(checkpoint))
    with atomic_write(folder / CARD) as file:
        file.write(str(card).encode())
    for file in (file for file in FILES if (folder / file).is_file()):
        print(f"{folder / file}  {(folder / file).stat().st_size:,} bytes", flush=True)
    if not args.yes:
        print(f"not uploaded: read {folder / CARD}, then give --yes to upload these files to {args.repo}")
        return
    print(f"uploaded: {upload(args.repo, folder, args.private)}")


def check_free(folder: Path) -> None:
    """Raise InputError for a folder whose config.json is not of a model of ours, such as that of a run."""
    if (folder / CONFIG).exists():
        remedy = "give an empty folder as --out"
        values = read_json(folder / CONFIG, "configuration", remedy)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise InputError(f"{folder / CONFIG}: is a file of something else and would be overwritten; {remedy}")


def results_of(path: Path, sha256: str, given: list[Path] | None) -> Iterator[Result]:
    """The results of this checkpoint in the paths given, or in eval_* beside it; no controls.

    Raises InputError for a file given that is of another checkpoint: those beside it may be of other steps.
    """
    for file in find_files(given) if given else sorted(path.parent.glob("eval_*/metrics.json")):
        result = read_result(file)
        if result and result.metrics["checkpoint"]["sha256"] == sha256:
            yield result
        elif result and given:
            raise InputError(f"{file}: is of another checkpoint than {path}; evaluate this one")


def card_of(repo: str, licence: str, checkpoint: Checkpoint, sha256: str, results: list[Result]) -> ModelCard:
    """The model card: what the hub reads (licence, tags, results) and what people do."""
    evaluations = [
        EvalResult("image-segmentation", result.of[0], name_of(result), metric, round(result.metrics[metric], 2),
                   dataset_split=result.of[1], metric_name=", ".join([metric, *result.marks]))
        for result in results for metric in METRICS
    ]  # fmt: skip
    data = ModelCardData(
        model_name=repo.partition("/")[2],
        license=licence,
        language="en",
        pipeline_tag="image-segmentation",
        tags=["restr", "referring-image-segmentation"],
        eval_results=evaluations or None,
    )
    rows = {" ".join([name_of(result), result.of[1], *result.marks]): result.metrics for result in results}
    dataset = checkpoint.data.get("dataset")
    trained = f' for {checkpoint.step:,} steps on data named "{one_line(dataset, 80)}"' if dataset else ""
    height, width = checkpoint.config.vision.image_size
    text = TEXT.format(
        data=data.to_yaml(),
        name=repo.partition("/")[2],
        repo=repo,
        trained=trained,
        numbers=sum(tensor.numel() for tensor in checkpoint.weights.values()),
        words=words_of(checkpoint),
        height=height,
        width=width,
        results=RESULTS.format(sha256=sha256, table=format_table(rows)) if rows else NO_RESULTS,
    )
    return ModelCard(text)


def words_of(checkpoint: Checkpoint) -> str:
    """What the model reads."""
    language = checkpoint.config.language
    if not isinstance(language, TextEncoderConfig):
        return f"knows {language.vocabulary_size:,} words"
    name = one_line(language.name, 80)
    return f"reads with the text encoder {name} (after `pip install -r requirements-text.txt`)"


def name_of(result: Result) -> str:
    """The usual name of the data set, if the split has the published number of expressions; else its own."""
    return title(result.of[0]) if is_public(*result.of, result.metrics["n_samples"]) else f'data named "{result.of[0]}"'


def upload(repo: str, folder: Path, private: bool) -> str:
    """Create the model on the hub if it is new, and commit its files. Returns where. Raises InputError."""
    hub = HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        message = "Weights, configuration, vocabulary and card"
        return str(hub.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=FILES, commit_message=message))
    except Exception as error:  # the client and what it is built on raise many kinds
        reason = one_line(" ".join(str(error).split()), 200)
        raise InputError(f"{repo}: not uploaded ({reason}); is there a network, and did you `hf auth login`?") from None


if __name__ == "__main__":
    run_main(main)
