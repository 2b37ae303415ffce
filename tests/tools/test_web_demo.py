"""tools/web_demo.py: its answers without a browser, and the page in a real one."""

import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn import functional

from eval.visualise import ORANGE, probability
from models import load_restr
from tests.conftest import ROOT
from tests.support.browser import chromium, needs_gradio, requested
from tests.support.small_model import write_checkpoint
from tools import web_demo
from utils.cli import run_main

PATIENCE = 120  # seconds, for a slow machine; nothing is asserted about time


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint and a folder of examples."""
    root = tmp_path_factory.mktemp("demo")
    write_checkpoint(root / "best.pth")
    (root / "photos").mkdir()
    for number, size in enumerate(((40, 57), (64, 30))):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    (root / "photos" / "1.txt").write_text("\n w5 <b>ring</b> \nw6\n")
    (root / "photos" / "notes.txt").write_text("not an image")
    (root / "notes.png").write_text("not an image")
    (root / "empty.png").touch()
    Image.new("1", (17_000, 5_000)).save(root / "bomb.png")  # 85 million pixels in few bytes
    return root


@pytest.fixture(scope="module")
def model(place):
    return load_restr(place / "best.pth")


def mask_file(parts: dict) -> tuple[str, np.ndarray]:
    """Name and pixels of the mask to download."""
    name, data = parts["file"]
    return name, np.asarray(Image.open(io.BytesIO(data)))


def test_an_answer_is_the_models(place, model):
    path = place / "photos" / "0.png"
    parts = web_demo.answer(model, str(path), "w4 zebra<script>", 0.5)
    mask = model.segment(path, "w4 zebra<script>")
    assert 0 < mask.mean() < 1 and f"{mask.mean():.1%}" in parts["said"]
    name, pixels = mask_file(parts)
    assert name == "0-w4_zebra_script_mask.png" and np.array_equal(pixels, 255 * mask.astype(np.uint8))
    assert parts["mask"].shape == parts["soft"].shape == parts["patches"].shape == (898, 1280, 3)
    words, said = parts["words"], parts["said"]
    assert "<script" not in words + said and "<b>script</b>" in words and "&quot;zebra&quot;" in said
    attention = [paid for _, paid in parts["found"].result.words]
    assert "<b>w4</b>" in words and all(f"<span>{paid:.1%}</span>" in words for paid in attention)


def test_the_edge_of_a_small_image_is_sharp(place, model):
    """Its pixels are the screen's, not squares of the image's: near all of the line the enlarged logits are about 0."""
    parts = web_demo.answer(model, str(place / "photos" / "0.png"), "w4", 0.5)
    small = torch.from_numpy(parts["found"].result.logits)[None, None]
    inside = functional.interpolate(small, (898, 1280), mode="bilinear", align_corners=False)[0, 0].numpy() >= 0
    grey = Image.fromarray(255 * inside.astype(np.uint8))
    crossed = np.asarray(grey.filter(ImageFilter.MaxFilter(9))) != np.asarray(grey.filter(ImageFilter.MinFilter(9)))
    edge = (parts["mask"] == ORANGE).all(-1)
    assert 0 < edge.sum() < 0.5 * edge.size and crossed[edge].mean() > 0.99


def test_the_threshold_needs_no_model(place, model, monkeypatch):
    found = web_demo.answer(model, str(place / "photos" / "0.png"), "w4 zebra", 0.5)["found"]
    monkeypatch.setattr(model, "encode_image", None)
    shares = probability(found.result.logits.astype(float))
    for share in (0.0, 0.3, 0.5, float(np.quantile(shares, 0.7)), 1.0):
        parts = web_demo.cut(found, share)
        assert np.array_equal(mask_file(parts)[1] == 255, shares >= share), share
        assert (f"{(shares >= share).mean():.1%}" in parts["said"]) == bool((shares >= share).any())
        assert "zebra" in parts["said"]
    assert f"highest probability is {shares.max():.2g}" in parts["said"]
    assert web_demo.cut(None, 0.5) == {"said": ""}


def test_an_image_is_encoded_once_until_its_file_changes(model, tmp_path, monkeypatch):
    encoded, encode_image = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda image: encoded.append(1) or encode_image(image))
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "teal").save(path)
    for text in ("w4", "w5", "w4 w6"):
        web_demo.answer(model, str(path), text, 0.5)
    assert len(encoded) == 1
    Image.new("RGB", (40, 30), "red").save(path)
    os.utime(path, ns=(1, 1))
    found = web_demo.answer(model, str(path), "w4", 0.5)["found"]
    assert len(encoded) == 2 and found.image[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("image", "text", "says"),
    [
        (None, "w4", "Give an image"),
        ("photos/0.png", " \n", "expression is empty"),
        ("photos/0.png", "w4 " * 10_000, "30,000 characters"),
        ("notes.png", "w4", "this file: is truncated, damaged or no image"),
        ("empty.png", "w4", "this file: is truncated, damaged or no image"),
        ("bomb.png", "w4", "this file: 17000 x 5000 pixels"),
        ("none.png", "w4", "Give an image"),
    ],
)
def test_mistakes_are_said_on_the_page(place, model, image, text, says):
    parts = web_demo.answer(model, image and str(place / image), text, 0.5)
    assert list(parts) == ["said"] and says in parts["said"] and 'role="alert"' in parts["said"]


def test_large_images_are_drawn_smaller_and_cut_out_whole(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    parts = web_demo.answer(model, str(tmp_path / "wide.png"), "w4", 0.5)
    assert parts["mask"].shape == (17, 1280, 3)
    assert np.array_equal(mask_file(parts)[1] == 255, model.segment(pixels, "w4"))


def test_words_of_examples_stand_beside_them(place, tmp_path):
    photos = place / "photos"
    expected = [("0.png", ""), ("1.png", "w5 <b>ring</b>"), ("1.png", "w6")]
    assert web_demo.example_pairs(photos) == [(photos / name, text) for name, text in expected]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n".join(map(str, range(100))))
    assert [text for _, text in web_demo.example_pairs(tmp_path)] == [str(i) for i in range(web_demo.EXAMPLES)]


@pytest.fixture
def refused(place, tmp_path, monkeypatch, capsys):
    """What the script says, on one line, of flags that it does not take."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> str:
        arguments = ["--checkpoint", str(place / "best.pth"), "--device", "cpu", *flags]
        with pytest.raises(SystemExit) as left:
            run_main(lambda: web_demo.main(arguments))
        said = capsys.readouterr()
        assert (left.value.code, said.out, said.err.count("\n")) == (2, "", 1)
        return said.err

    return run


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--examples", "none"], "--examples none: no such folder"),
        (["--examples", "."], "holds no image"),
        (["--port", "0"], "--port 0"),
        (["--checkpoint", "none.pth"], "none.pth: no such checkpoint"),
    ],
)
def test_bad_flags(refused, flags, says):
    pytest.importorskip("gradio")
    assert says in refused(*flags)


def test_a_port_that_is_taken(refused):
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"--port {port}: another program has it" in refused("--port", port)


def test_without_gradio(refused, monkeypatch):
    monkeypatch.setattr(web_demo.importlib.util, "find_spec", lambda name: None)
    assert "pip install -r requirements-demo.txt" in refused()


@pytest.fixture(scope="module")
def address(place):
    """The page, served by the script as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = [sys.executable, ROOT / "tools/web_demo.py", "--device", "cpu", "--port", port]
    script += ["--checkpoint", place / "best.pth", "--examples", place / "photos"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(place / "cache")}
    server = subprocess.Popen(script, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        end = time.monotonic() + PATIENCE
        while server.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)  # Ctrl+C
        said = server.communicate(timeout=PATIENCE)[0]
    assert (server.returncode, said) == (0, f"http://127.0.0.1:{port}  (Ctrl+C ends it)\n")


class Page:
    """The page in a browser, and how to wait for it."""

    def __init__(self, browser, address: str):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.all("#expression textarea"))

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def wait(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, PATIENCE, 0.2).until(lambda _: condition())

    def wait_for(self, text: str, name: str = "said") -> None:
        self.wait(lambda: text in "".join(element.text for element in self.all(f"#{name}")))

    def source(self, name: str) -> str:
        pictures = self.all(f"#{name} img")
        return pictures[0].get_attribute("src") if pictures else ""

    def box(self, selector: str) -> dict:
        return self.browser.execute_script(
            "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector
        )


@needs_gradio
def test_the_page_in_a_browser(place, address, model, tmp_path):
    with chromium(1280, 950) as browser:
        browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        page = Page(browser, address)
        assert "ReSTR" in browser.title and "best.pth" in page.all("header")[0].text
        assert page.all("#expression textarea")[0].accessible_name == "Expression"
        page.wait(lambda: page.all("#examples button"))[0].click()  # the image without words
        page.wait(lambda: page.source("image"))
        page.wait_for("The expression is empty")
        assert not page.source("mask")

        page.all("#expression textarea")[0].send_keys("w4 zebra\n")
        expected = model.segment(place / "photos" / "0.png", "w4 zebra")
        page.wait_for(f"{expected.mean():.1%}")
        first = page.wait(lambda: page.source("mask"))
        assert page.source("soft") and page.source("patches")
        page.wait_for("zebra", "words")
        assert "zebra" in page.all("#said .caution")[0].text
        note, button = page.box("#said .caution"), page.box("#find")
        assert note["left"] >= button["right"] and note["top"] < button["bottom"] and note["bottom"] > button["top"]
        page.all("#file")[0].click()
        saved = tmp_path / "0-w4_zebra_mask.png"
        page.wait(saved.exists)
        assert np.array_equal(np.asarray(Image.open(saved)) == 255, expected)

        page.all("#threshold input[type=range]")[0].send_keys("\ue010")  # the key End: probability 1
        page.wait_for("Nothing reaches the threshold")
        page.wait(lambda: page.source("mask") != first)
        hosts = {host for host in requested(browser) if host.startswith(("http", "ws"))}
        assert hosts == {"http:127.0.0.1"}  # fonts and scripts included
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@needs_gradio
def test_the_page_on_a_phone(place, address, model):
    with chromium() as browser:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        page = Page(browser, address)
        example = page.wait(lambda: page.all("#examples button"))[1]
        assert "w5 <b>ring</b>" in example.text
        example.send_keys("\n")  # as a keyboard or a screen reader presses it
        page.wait_for(f"{model.segment(place / 'photos' / '1.png', 'w5 <b>ring</b>').mean():.1%}")
        answer = page.wait(lambda: page.source("mask"))
        text = page.all("#expression textarea")[0]
        assert text.get_attribute("value") == "w5 <b>ring</b>"
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        boxes = [page.box(f"#{name}") for name in ("ask", "mask", "below", "words", "examples")]
        assert all(upper["bottom"] <= lower["top"] for upper, lower in itertools.pairwise(boxes))
        assert boxes[1]["top"] - boxes[0]["bottom"] < 30

        words = page.all("#words")[0].text
        text.send_keys("\ue009a\ue009\ue017")  # Ctrl+A and Delete
        text.send_keys("\n")
        page.wait_for("The expression is empty")
        assert page.all("#said .caution") and browser.switch_to.active_element == text
        assert (page.source("mask"), page.all("#words")[0].text) == (answer, words)


@needs_gradio
@pytest.mark.parametrize(
    ("name", "says"), [("notes.png", "no image"), ("empty.png", "no image"), ("bomb.png", "scale it down")]
)
def test_hostile_uploads_in_a_browser(place, address, name, says):
    with chromium() as browser:
        page = Page(browser, address)
        page.all("#image input[type=file]")[0].send_keys(str(place / name))
        page.wait(lambda: page.source("image"))
        page.all("#expression textarea")[0].send_keys("w4\n")
        page.wait_for(says)
        assert not page.source("mask")
