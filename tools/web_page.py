"""The looks and the wiring of tools/web_demo.py's page; gradio is imported only where it is used."""

import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from models.inference import Segmentation
from utils.errors import InputError, one_line

if TYPE_CHECKING:
    import gradio

CSS = (Path(__file__).parent / "web_page.css").read_text()
HINT = "“woman in gray shirt”, “the red circle on the left”"
SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched
MONOSPACE = ["ui-monospace", "monospace"]


def build(subtitle: str, examples: list[Path], answer: Callable, cut: Callable) -> "gradio.Blocks":
    """The page. `answer` and `cut` are web_demo's, the former without its model."""
    import gradio as gr

    quiet = {"show_label": True, "interactive": False, "buttons": ["download", "fullscreen"], "format": "png"}
    with gr.Blocks(title="ReSTR", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        about = f"<p>Point at things with words.</p><small>{escape(subtitle)}</small>"
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
        gr.on([button.click, text.submit], answer, [image, text, share], outputs, **run)
        again = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        share.input(cut, [found, share], [mask, said], **again)
    return page


def serve(page: "gradio.Blocks", port: int, sessions: int) -> None:
    """Serve the page on 127.0.0.1 in threads of their own. Raises InputError for a port that is not available."""
    import gradio as gr

    theme = gr.themes.Base(primary_hue="orange", neutral_hue="stone", font=SYSTEM_FONT, font_mono=MONOSPACE)
    theme.set(body_background_fill="*neutral_50", block_label_text_size="13px", block_radius="10px")
    limits = {"max_file_size": "64mb", "state_session_capacity": sessions}
    quiet = {"share": False, "quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "footer_links": []}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page.queue(api_open=False)
            page.launch(server_name="127.0.0.1", server_port=port, theme=theme, css=CSS, **limits, **quiet)
    except OSError:
        raise InputError(f"--port {port}: another program has it, or it is reserved; give another") from None


def complaint(message: str) -> str:
    """What the user did wrong, as HTML."""
    return f'<p class="complaint" role="alert">{escape(one_line(message))}</p>'


def remark(share: float) -> str:
    """How much of the image the mask covers, as HTML."""
    said = f"The mask covers <b>{share:.1%}</b> of the image." if share else "Nothing reaches the threshold."
    return f'<p class="remark">{said}</p>'


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
