"""Write the model of a checkpoint as one ONNX file that describes itself, for any number of images at a time.

    python tools/export_onnx.py --checkpoint weights/unc/best.pth --out restr.onnx

Inputs: image uint8 B x 3 x H x W (RGB, resized and centred on the canvas) and ids int64 B x 20. Outputs: pixel_logits
float32 B x 1 x H x W and patch_logits float32 B x 1 x rows x columns; without a decoder both are the patch logits,
which models.inference resizes to the image in one step. The file's metadata hold sizes, vocabulary and
where the weights come from. Where onnxruntime is installed the file is compared with PyTorch before it gets its name.
"""

import importlib.util
import io
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models import ReSTR, load_restr
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError, one_line
from utils.files.writing import atomic_write
from utils.text import Vocabulary

OPSETS = range(17, 21)  # 17 brought LayerNormalization; 20 is the last that PyTorch's tracing exporter writes
BATCHES = (1, 2, 3)  # compared; the model is traced with the middle one
TOLERANCE = 1e-3  # of the largest logit; float32 on two runtimes differs by about 1e-5 of it
MAX_BYTES = 2**31 - 2**20  # one protobuf message has less than 2 GiB; the graph itself takes some of it
NAMES = ("image", "ids", "pixel_logits", "patch_logits")
TEXT_NOTE = (
    "lower-cased, split on (\\W+), the separators and a last '.' treated as in utils/text.py of the code; the line "
    "number of a word in `vocabulary` is its id; unknown words are 3; at most 20 ids, padded with 0 at the front"
)
TOKENIZER_NOTE = (
    "ids of `tokenizer`, Hugging Face's tokenizer.json, each plus 1; at most `text_length`, with the special tokens, "
    "padded with 0 at the end"
)
IMAGE_NOTE = (
    "RGB, resized to fit `image_size` (height,width) with its aspect ratio kept, centred on black as in training "
    "or on grey (128) as in evaluation; (x / 255 - mean) / std is part of the model"
)


def main(arguments: list[str] | None = None) -> None:
    """Export, compare, write, say what was written."""
    parser = ArgumentParser(prog="export_onnx.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="of this code or the authors', or hf://owner/name"
    )
    out = "the ONNX file to write; its folder is created if needed"
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help=out)
    parser.add_argument("--opset", type=int, choices=OPSETS, default=OPSETS[0], help="version of ONNX's operators")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("onnx") is None:
        raise InputError("onnx is not installed: pip install onnx, in the version that requirements.txt names")
    model = load_restr(options.checkpoint, "cpu")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(f"{options.checkpoint}: {size / 1e9:.1f} GB of weights; an ONNX file holds less than 2 GiB")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    data = export(model, options.opset)
    print(f"exported in {time.monotonic() - start:.0f} s: opset {options.opset}, {len(data) / 1e6:.1f} MB in one file")
    if importlib.util.find_spec("onnxruntime") is None:
        print("not compared with PyTorch: onnxruntime is not installed", file=sys.stderr)
    else:
        compare(model, data, options.checkpoint)
    with atomic_write(options.out) as file:
        file.write(data)
    height, width = model.image_size
    print(f"{options.out}: image uint8 B x 3 x {height} x {width}, ids int64 B x {model.config.language.text_length}")


def example(model: ReSTR, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, uint8 B x 3 x H x W, and ids, int64 B x 20, with padding of different lengths where it belongs."""
    generator = torch.Generator().manual_seed(batch)
    image = torch.randint(0, 256, (batch, 3, *model.image_size), dtype=torch.uint8, generator=generator)
    words, length = model.config.language.vocabulary_size, model.config.language.text_length
    ids = torch.randint(min(1, words - 1), words, (batch, length), generator=generator)
    for row in range(batch):
        ids[row, : length - 3 * row - 2] = 0
    return image, ids.flip(1) if model.subwords else ids


def export(model: ReSTR, opset: int) -> bytes:
    """The ONNX file of `model`. Raises InputError for a backbone that ONNX cannot express."""
    import onnx  # an occasional script's package: none but this function needs it

    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what a trace may lose, `compare` finds
            torch.onnx.export(
                model,
                example(model, BATCHES[1]),
                file,
                dynamo=False,  # traces in a second, where torch.export takes half a minute and two more packages
                opset_version=opset,
                input_names=NAMES[:2],
                output_names=NAMES[2:],
                dynamic_axes={name: {0: "batch"} for name in NAMES},
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        backbone = model.config.vision.backbone
        raise InputError(f"{backbone}: PyTorch cannot write it as ONNX ({one_line(error, 160)})") from None
    proto = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(proto, metadata(model))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def metadata(model: ReSTR) -> dict[str, str]:
    """What a user of the ONNX file needs to know: how to make its inputs, and which weights it holds."""
    origin = model.provenance
    values = {
        "image_size": ",".join(map(str, model.image_size)),
        "patch_size": str(model.patch_size),
        "mean": ",".join(f"{x:g}" for x in model.vision.mean.flatten().tolist()),
        "std": ",".join(f"{x:g}" for x in model.vision.std.flatten().tolist()),
        "image": IMAGE_NOTE,
        "text": TOKENIZER_NOTE if model.subwords else TEXT_NOTE,
        "text_length": str(model.config.language.text_length),
        "checkpoint_sha256": origin["sha256"],
        "step": str(origin["step"]),
        "dataset": str(origin["data"].get("dataset", "")),
    }
    if model.subwords:
        values["tokenizer"] = model.subwords.words
    elif model.vocabulary is not None:
        vocabulary = Vocabulary(model.vocabulary)
        values |= {"vocabulary": "\n".join(vocabulary.words), "vocabulary_sha256": vocabulary.sha256}
    return values


def compare(model: ReSTR, data: bytes, file: Path) -> None:
    """Print how far onnxruntime's logits are from PyTorch's.

    Raises InputError, naming the checkpoint `file`, if onnxruntime cannot run the ONNX file or if they differ by more
    than rounding explains, or are not numbers.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # fatal: its errors are raised, too
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = torch.zeros(2, 2)  # of each output: the largest deviation and the largest logit
    for batch in BATCHES:
        image, ids = example(model, batch)
        with torch.no_grad():
            expected = model(image, ids)
        try:
            outputs = session.run(NAMES[2:], {"image": image.numpy(), "ids": ids.numpy()})
        except Exception as error:  # onnxruntime's own kinds have no common parent
            backbone = model.config.vision.backbone
            raise InputError(f"{backbone}: onnxruntime cannot run the ONNX model ({one_line(error, 160)})") from None
        pairs = [(torch.from_numpy(theirs) - ours, ours) for theirs, ours in zip(outputs, expected, strict=True)]
        worst = worst.maximum(torch.tensor([[x.abs().max() for x in pair] for pair in pairs]))  # NaN stays
    print(f"largest deviation from PyTorch in batches of {', '.join(map(str, BATCHES))}:")
    for name, (difference, largest) in zip(NAMES[2:], worst.tolist(), strict=True):
        print(f"  {name}: {difference:.1e}, of logits up to {largest:.3g}")
        if not difference <= TOLERANCE * largest:
            raise InputError(f"{file}: {name} of the ONNX model differ from PyTorch's by {difference:.1e}: not written")


if __name__ == "__main__":
    run_main(main)
