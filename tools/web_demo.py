"""A page on this computer for trying a checkpoint: an image, an expression, and what the model makes of them.

    pip install -r requirements-demo.txt
    python tools/web_demo.py --checkpoint weights/EXP/best.pth --examples photos

It answers only to 127.0.0.1, asks nothing of any other machine, and reports nothing to anybody. Images of more than
1280 pixels a side are scaled down first; predict.py takes them as they are.
"""

import contextlib
import importlib.util
import os
import sys
import threading
import time
import warnings
from functools import lru_cache, partial
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

if TYPE_CHECKING:
    import gradio

MAX_SIDE = 1280  # pixels; what a screen shows, and what keeps an answer quick
EXAMPLES = 12
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SESSIONS = 16  # whose last image is kept for the threshold, about 10 MB each
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
    """What a session keeps of its last answer: uint8 H x W x 3, and the segmentation."""

    image: np.ndarray
    result: Segmentation


def main(arguments: list[str] | None = None) -> None:
    """Load, build the page, serve it until interrupted."""
    parser = ArgumentParser(prog="web_demo.py", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help="what train_restr.py wrote")
    parser.add_argument("--examples", type=Path, metavar="DIR", help=f"folder, {EXAMPLES} images of which are offered")
    parser.add_argument("--port", type=int, default=7860, help="of 127.0.0.1, 1 to 65535")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    args = parser.parse_args(arguments)
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: give 1 to 65535")
    os.environ.update(QUIET)  # before gradio is imported
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed: pip install -r requirements-demo.txt")
    examples = example_images(args.examples) if args.examples else []
    model = load_restr(args.checkpoint, choose_device(args.device))
    page = build(model, examples)
    serve(page, args.port)
    with contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{args.port}  (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
    page.close(verbose=False)


def example_images(folder: Path) -> list[Path]:
    """The first images of a folder, by name. Raises InputError if it has none."""
    if not folder.is_dir():
        raise InputError(f"--examples {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:EXAMPLES]
    if not found:
        raise InputError(f"--examples {folder}: holds no image ({', '.join(sorted(SUFFIXES))})")
    for path in found:
        read_image(path, remedy="remove it from the folder")
    return found


def subtitle(model: ReSTR) -> str:
    """Which model this is, in a line."""
    origin, (height, width) = model.provenance, model.image_size
    parts = [Path(origin["file"]).name, origin["data"].get("dataset"), origin["step"] and f"step {origin['step']:,}"]
    return one_line(" · ".join([*filter(None, parts), f"{height} × {width} pixels"]))


@lru_cache(SESSIONS)
def open_image(model: ReSTR, path: str, changed: int) -> tuple[np.ndarray, EncodedImage]:
    """An image, uint8 H x W x 3, and its encoding, done once for many expressions; `changed`: time of the file."""
    picture = Image.fromarray(read_image(path, "this file", "give a photograph or another image", upright=True))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    image = np.asarray(picture)
    return image, encode(model, image)


def answer(model: ReSTR, path: str | None, text: str, share: float) -> tuple:
    """What the page shows for an image and an expression: (Found, overlay, soft map, patch map, words, remarks).

    `share` is the probability from which a pixel belongs to the object. What the user did wrong is said in the remarks.
    """
    try:
        if path is None or not Path(path).is_file():  # the page forgets an upload after an hour
            raise InputError("Give an image first: drop one on the left, or pick an example.")
        if not text.strip():
            raise InputError("The expression is empty: describe the object in a word or more.")
        started = time.perf_counter()
        image, encoded = open_image(model, path, Path(path).stat().st_mtime_ns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text without words, which `remarks` says
            result = segment(model, encoded, text)
        seconds = time.perf_counter() - started
    except InputError as error:
        return None, None, None, None, "", f'<p class="complaint" role="alert">{escape(one_line(error))}</p>'
    found = Found(image, result)
    shown, said = cut(found, share)
    soft = heat(image, probability(result.logits))
    patches = patch_picture(image, result.patches, model.image_size)
    return found, shown, soft, patches, words(result, seconds), said


def cut(found: Found | None, share: float) -> tuple:
    """The overlay and the remark for another threshold, without the model: (uint8 H x W x 3, HTML)."""
    if found is None:
        return None, ""
    mask = found.result.logits >= logit(share)
    said = f"The mask covers <b>{mask.mean():.1%}</b> of the image." if mask.any() else "Nothing reaches the threshold."
    return highlight(found.image, mask), f'<p class="remark">{said}</p>'


def words(result: Segmentation, seconds: float) -> str:
    """The expression as the model read it, each word with the attention of the class seed, as HTML."""
    top = max((paid for _, paid in result.words), default=0) or 1
    cells = []
    for word, paid in result.words:
        shown, unknown = escape(one_line(word.strip(), 40)), word in result.unknown
        title = ' class="unknown" title="not in the vocabulary: read as &lt;unk&gt;"' if unknown else ""
        bar = f'<i style="height:{100 * paid / top:.0f}%"></i>'
        cells.append(f"<li{title}><b>{shown}</b>{bar}<span>{paid:.1%}</span></li>")
    rest = 1 - sum(paid for _, paid in result.words)
    notes = [f"{rest:.0%} of the attention went to padding and to the seed itself", f"answered in {seconds:.2f} s"]
    if result.unknown:
        notes.insert(0, f"not in the vocabulary: {escape(result.unknown_words)}")
    if result.unread:
        notes.insert(0, f"only the first {len(result.words)} words are read")
    bars = f"<ol>{''.join(cells)}</ol>" if cells else "<p>The expression has no words.</p>"
    return f"<h2>Attention of the class seed to the words</h2>{bars}<small>{'; '.join(notes)}.</small>"


def build(model: ReSTR, examples: list[Path]) -> "gradio.Blocks":
    """The page and what its parts do."""
    import gradio as gr

    quiet = {"show_label": True, "interactive": False, "buttons": ["download", "fullscreen"], "format": "png"}
    with gr.Blocks(title="ReSTR", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        about = f"<p>Point at things with words.</p><small>{escape(subtitle(model))}</small>"
        gr.HTML(f"<header><h1>ReSTR</h1>{about}</header>", padding=False)
        found = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                sources = ["upload", "clipboard"]
                image = gr.Image(type="filepath", label="Image", sources=sources, height=300, elem_id="image")
                image.preprocess = lambda file: file and file.path  # `answer` reads it, and says what is wrong with it
                text = gr.Textbox(label="Expression", placeholder=HINT, max_lines=4, elem_id="expression")
                button = gr.Button("Find it", variant="primary", elem_id="find")
                said = gr.HTML(elem_id="said", padding=False)
                if examples:
                    files = [[str(path)] for path in examples]
                    gr.Examples(files, [image], label="Examples", cache_examples=False, examples_per_page=len(files))
            with gr.Column(scale=6, min_width=360):
                mask = gr.Image(label="Mask", height=340, elem_id="mask", **quiet)
                share = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold on the probability", elem_id="threshold")
                with gr.Row():
                    soft = gr.Image(label="Each pixel", height=200, elem_id="soft", **quiet)
                    patches = gr.Image(label="Each patch", height=200, elem_id="patches", **quiet)
                gr.HTML('<div class="scale"><span>probability 0</span><i></i><span>1</span></div>', padding=False)
                words = gr.HTML(elem_id="words", padding=False)
        outputs = [found, mask, soft, patches, words, said]
        run = {"concurrency_limit": 1, "api_visibility": "private", "show_progress_on": [mask]}
        gr.on([button.click, text.submit], partial(answer, model), [image, text, share], outputs, **run)
        again = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        share.input(cut, [found, share], [mask, said], **again)
    return page


def serve(page: "gradio.Blocks", port: int) -> None:
    """Serve the page on 127.0.0.1 in threads of their own. Raises InputError for a port that is not available."""
    import gradio as gr

    css = Path(__file__).with_suffix(".css").read_text()
    fonts = {"font": SYSTEM_FONT, "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Base(primary_hue="orange", neutral_hue="stone", **fonts)
    theme.set(body_background_fill="*neutral_50", block_label_text_size="13px", block_radius="10px")
    limits = {"max_file_size": "64mb", "state_session_capacity": SESSIONS}
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
