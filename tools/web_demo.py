"""A page on this computer for trying a checkpoint: an image, an expression, and what the model makes of them.

    pip install -r requirements-demo.txt
    python tools/web_demo.py --checkpoint weights/EXP/best.pth --examples photos

It answers only to 127.0.0.1, asks nothing of any other machine, and reports nothing to anybody; a `--checkpoint
hf://owner/name` is fetched before it starts. Each line of photo.txt beside photo.jpg, in the folder of examples, is an
expression to try with that image. The mask to download is the one that predict.py writes, under the same name.
"""

import contextlib
import importlib.util
import io
import os
import sys
import threading
import time
import warnings
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from eval.visualise import heat, highlight, patch_picture, probability
from models import ReSTR, load_restr
from models.inference import EncodedImage, Segmentation, encode, logit, segment
from utils.cli import ArgumentParser, run_main
from utils.device import choose_device
from utils.errors import InputError, one_line
from utils.files.images import read_image
from utils.files.reading import read_bytes
from utils.files.writing import plain_name, plain_words

if TYPE_CHECKING:
    import gradio

SCREEN = 1280  # pixels of the longer side of what is drawn, so that the edge of a mask is sharp on small images, too
EXAMPLES = 12
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SESSIONS = 16  # whose last answer is kept for the threshold: 9 MB for the screen, and 5 bytes a pixel of the image
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "no_proxy": "127.0.0.1",  # gradio asks its own server whether it has started
}
HINT = "“woman in gray shirt”, “the red circle on the left”"
SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched


class Found(NamedTuple):
    """What a session keeps of its last answer.

    name: of the mask, without "_mask.png". image: uint8 h x w x 3, as the screen shows it. logits: float32 h x w.
    result: the segmentation of the H x W image of the file.
    """

    name: str
    image: np.ndarray
    logits: np.ndarray
    result: Segmentation


def main(arguments: list[str] | None = None) -> None:
    """Load, build the page, serve it until interrupted."""
    parser = ArgumentParser(prog="web_demo.py", description=__doc__)
    trained = "what train_restr.py wrote, or hf://owner/name"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help=trained)
    parser.add_argument("--examples", type=Path, metavar="DIR", help="folder of images to try, and words in .txt files")
    parser.add_argument("--port", type=int, default=7860, help="of 127.0.0.1, 1 to 65535")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    args = parser.parse_args(arguments)
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: give 1 to 65535")
    os.environ.update(QUIET)  # before gradio is imported
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed: pip install -r requirements-demo.txt")
    examples = example_pairs(args.examples) if args.examples else []
    model = load_restr(args.checkpoint, choose_device(args.device))
    page = build(model, examples)
    serve(page, args.port, [str(path) for path, _ in examples])
    with contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{args.port}  (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
    page.close(verbose=False)


def example_pairs(folder: Path) -> list[tuple[Path, str]]:
    """The first images of a folder, by name, each with every line of its .txt file, or "". Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"--examples {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:EXAMPLES]
    if not found:
        raise InputError(f"--examples {folder}: holds no image ({', '.join(sorted(SUFFIXES))})")
    pairs = []
    for path in found:
        read_image(path, remedy="remove it from the folder")
        beside = path.with_suffix(".txt")
        text = read_bytes(beside, 10_000, "text", "remove it from the folder") if beside.exists() else b""
        lines = [one_line(line.strip()) for line in text.decode(errors="replace").splitlines()]
        pairs += [(path, line) for line in lines if line] or [(path, "")]
    return pairs[:EXAMPLES]


def subtitle(model: ReSTR) -> str:
    """Which model this is, in a line."""
    origin, (height, width) = model.provenance, model.image_size
    parts = [Path(origin["file"]).name, origin["data"].get("dataset"), origin["step"] and f"step {origin['step']:,}"]
    return one_line(" · ".join([*filter(None, parts), f"{height} × {width} pixels"]))


@lru_cache(SESSIONS)
def open_image(model: ReSTR, path: str, changed: int) -> tuple[np.ndarray, EncodedImage]:
    """An image for the screen, uint8 h x w x 3, and its encoding, done once for many expressions.

    `changed` is the time of the file. Raises InputError for what is no image.
    """
    pixels = read_image(path, "this file", "give a photograph or another image", upright=True)
    factor = SCREEN / max(pixels.shape)
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    smooth = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, smooth)), encode(model, pixels)


def answer(model: ReSTR, path: str | None, text: str, share: float) -> dict:
    """What the page shows for an image and an expression, by the names of its parts (see `build`).

    `share` is the probability from which a pixel belongs to the object. After a mistake of the user that is "said"
    alone: the last answer stays.
    """
    try:
        if path is None or not Path(path).is_file():  # the page forgets an upload after an hour
            raise InputError("Give an image first: drop one above, or pick an example.")
        if not text.strip():
            return {"said": note("caution", "The expression is empty: describe the object in a word or more.")}
        started = time.perf_counter()
        image, encoded = open_image(model, path, Path(path).stat().st_mtime_ns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text without words, which `remarks` says
            result = segment(model, encoded, text)
        seconds = time.perf_counter() - started
    except InputError as error:
        return {"said": note("complaint", escape(one_line(error)))}
    size = image.shape[1::-1]
    logits = np.asarray(Image.fromarray(result.logits).resize(size, Image.Resampling.BILINEAR))
    found = Found(f"{plain_name(Path(path))}-{plain_words(text)}", image, logits, result)
    soft, patches = heat(image, probability(logits)), patch_picture(image, result.patches, model.image_size)
    return {"found": found, "soft": soft, "patches": patches, "words": words(result, seconds), **cut(found, share)}


def cut(found: Found | None, share: float) -> dict:
    """The parts that depend on the threshold, without the model: the mask over the image, its file, and the remarks."""
    if found is None:
        return {"said": ""}
    lowest, result = logit(share), found.result
    mask, file = result.logits >= lowest, io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    highest = probability(result.logits.max().astype(float))
    covers = f"The mask covers <b>{mask.mean():.1%}</b> of the image."
    nothing = f"Nothing reaches the threshold; the highest probability is {highest:.2g}."
    return {
        "mask": highlight(found.image, found.logits >= lowest),
        "file": (f"{found.name}_mask.png", file.getvalue()),
        "said": note("remark", covers if mask.any() else nothing) + remarks(result),
    }


def remarks(result: Segmentation) -> str:
    """What the user should know about the expression, as HTML: words that the model does not know or did not read."""
    said = []
    if not result.words:
        said.append("The expression has no words.")
    if result.unknown:
        said.append(f"Not in the vocabulary: {escape(result.unknown_words)}.")
    if result.unread:
        said.append(f"Only the first {len(result.words)} tokens are read.")
    return note("caution", " ".join(said)) if said else ""


def note(kind: str, html: str) -> str:
    """A line beside the button: a remark, a caution or a complaint; screen readers read the last two at once."""
    return f'<p class="{kind}" role="{"status" if kind == "remark" else "alert"}">{html}</p>'


def words(result: Segmentation, seconds: float) -> str:
    """The expression as the model read it, each word with the attention of the class seed, as HTML."""
    top = max((paid for _, paid in result.words), default=0) or 1
    cells = []
    for word, paid in result.words:
        shown, unknown = escape(one_line(word.strip(), 40)), word in result.unknown
        title = ' class="unknown" title="not in the vocabulary: read as &lt;unk&gt;"' if unknown else ""
        bar = f'<i style="height:{100 * paid / top:.0f}%"></i>'
        cells.append(f"<li{title}><b>{shown}</b>{bar}<span>{paid:.1%}</span></li>")
    bars = f"<ol>{''.join(cells)}</ol><small>Answered in {seconds:.2f} s.</small>"
    return f"<h2>Attention of the class seed to the words</h2>{bars}"


def build(model: ReSTR, examples: list[tuple[Path, str]]) -> "gradio.Blocks":
    """The page and what its parts do."""
    import gradio as gr

    with gr.Blocks(title="ReSTR", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        about = f"<p>Point at things with words.</p><small>{escape(subtitle(model))}</small>"
        gr.HTML(f"<header><h1>ReSTR</h1>{about}</header>", padding=False)
        with gr.Row(equal_height=False, elem_id="columns"):
            parts = asked() | answered()
            if examples:
                look = {"allow_preview": False, "buttons": [], "interactive": False, "height": "auto"}
                parts["examples"] = gr.Gallery(examples, label="Examples", elem_id="examples", **look)
        connect(model, parts, examples)
    return page


def asked() -> "dict[str, gradio.components.Component]":
    """The column of the question, and the remarks on it."""
    import gradio as gr

    with gr.Column(elem_id="asked"):
        image = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=300, elem_id="image")
        image.preprocess = lambda file: file and file.path  # `answer` reads it, and says what is wrong with it
        text = gr.Textbox(label="Expression", placeholder=HINT, max_lines=4, elem_id="expression")
        with gr.Row(elem_id="ask"):
            button = gr.Button("Find it", variant="primary", elem_id="find", scale=0, min_width=120)
            said = gr.HTML(elem_id="said", padding=False)
    return {"image": image, "text": text, "button": button, "said": said}


def answered() -> "dict[str, gradio.components.Component]":
    """The column of the answer, and what a session keeps of it."""
    import gradio as gr

    look = {"show_label": True, "interactive": False, "format": "png"}
    maps = {"height": 200, "min_width": 140, "buttons": ["download", "fullscreen"], **look}
    with gr.Column(elem_id="answered"):
        mask = gr.Image(label="Mask", height=340, elem_id="mask", buttons=["fullscreen"], **look)
        with gr.Row(elem_id="below"):
            share = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold (probability)", elem_id="threshold")
            file = gr.DownloadButton("Download mask", interactive=False, elem_id="file", scale=0, size="md")
        with gr.Row():
            soft = gr.Image(label="Each pixel", elem_id="soft", **maps)
            patches = gr.Image(label="Each patch", elem_id="patches", **maps)
        gr.HTML('<div class="scale"><span>probability 0</span><i></i><span>1</span></div>', padding=False)
        words = gr.HTML(elem_id="words", padding=False)
    parts = {"mask": mask, "share": share, "file": file, "soft": soft, "patches": patches, "words": words}
    return {"found": gr.State(None), **parts}


def connect(model: ReSTR, parts: "dict[str, gradio.components.Component]", examples: list[tuple[Path, str]]) -> None:
    """What a click, the key Enter, the slider and an example do."""
    import gradio as gr
    from gradio.processing_utils import save_bytes_to_cache

    def show(values: dict) -> dict:
        if "file" in values:
            name, data = values["file"]
            path = save_bytes_to_cache(data, name, parts["file"].GRADIO_CACHE)
            values["file"] = gr.DownloadButton(value=path, interactive=True)
        return {parts[name]: value for name, value in values.items()}

    def ask(*given) -> dict:
        return show(answer(model, *given))

    def move(*given) -> dict:
        return show(cut(*given))

    def pick(event: gr.SelectData) -> dict:
        path, text = examples[event.index]
        return show({"image": str(path), "text": text} if text else {"image": str(path)})

    given, question = [parts["image"], parts["text"], parts["share"]], [parts["image"], parts["text"]]
    outputs = [parts[name] for name in ("found", "mask", "file", "soft", "patches", "words", "said")]
    run = {"concurrency_limit": 1, "api_visibility": "private", "show_progress_on": [parts["mask"]]}
    quick = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on([parts["button"].click, parts["text"].submit], ask, given, outputs, **run)
    parts["share"].input(move, [parts["found"], parts["share"]], outputs, trigger_mode="always_last", **quick)
    if examples:
        parts["examples"].select(pick, None, question, **quick).then(ask, given, outputs, **run)


def serve(page: "gradio.Blocks", port: int, files: list[str]) -> None:
    """Serve the page, which may show `files`, on 127.0.0.1 in threads of their own. Raises InputError: no such port."""
    import gradio as gr

    css = Path(__file__).with_suffix(".css").read_text()
    fonts = {"font": SYSTEM_FONT, "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Base(primary_hue="orange", neutral_hue="stone", **fonts)
    theme.set(body_background_fill="*neutral_50", block_label_text_size="13px", block_radius="10px")
    limits = {"max_file_size": "64mb", "allowed_paths": files, "state_session_capacity": SESSIONS}
    quiet = {"share": False, "quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "footer_links": []}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page.queue(api_open=False)
            page.launch(server_name="127.0.0.1", server_port=port, theme=theme, css=css, **limits, **quiet)
    except OSError:
        raise InputError(f"--port {port}: another program has it, or it is reserved; give another") from None


if __name__ == "__main__":
    run_main(main)
