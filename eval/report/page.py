"""The HTML of a report: a template, its style and its scripts, and the data, all in one file.

What comes from data (expressions, names, paths) is never put into the markup: it travels as JSON in a block that no
browser runs, and the scripts set it as text. The page's own policy lets it run these scripts only and load nothing.
"""

import base64
import hashlib
import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


TEMPLATE, STYLE = "page.html", "page.css"


SCRIPTS = ("charts.js", "gallery.js", "page.js")  # one script in this order


_INERT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}  # what could end the block, or confuse a parser


def render(facts: dict, gallery: dict) -> bytes:
    """The page, UTF-8: `facts` and `gallery` as `eval.report` makes them. Raises ValueError for NaN and infinity."""
    style, script = _text(STYLE), f"(() => {{\n{''.join(_text(name) for name in SCRIPTS)}}})();\n"
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    policy += "; base-uri 'none'; form-action 'none'"
    parts = {
        "policy": policy,
        "title": escape(f"{facts['title']}: where does it fail?"),
        "style": style,
        "facts": encode(facts),
        "gallery": encode(gallery),
        "script": script,
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _text(TEMPLATE))
    return page.encode()


def encode(value: Any) -> str:
    """`value` as JSON that can stand inside a script element: without <, > and &."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_INERT)


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """How a policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
