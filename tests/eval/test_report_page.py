"""The report in a real browser: opened from disk, it asks for nothing, runs nothing from data, and can be used."""

from statistics import median_high

import numpy as np
import pytest

from eval.evaluator import Prediction
from eval.metrics import GENERALISED, SampleScore, summarise
from eval.report import write as report
from tests.support.browser import chromium, needs_browser, requested
from tests.support.report_case import HOSTILE, metrics_of, other_of, predictions, thumbnails_of

COUNT = 150
PAGE = 48  # cards of one page


@pytest.fixture(scope="module")
def browser():
    with chromium(1280, 1000) as driver:
        yield driver


@pytest.fixture(scope="module")
def results():
    """This result and another one, of the same expressions."""
    return predictions(COUNT, 1), predictions(COUNT, 2)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, results):
    """A report, one that compares, and one that compares with a result without masks."""
    folder = tmp_path_factory.mktemp("page")
    scores = [one.score for one in results[0]]
    others = {"alone": None, "compared": other_of(results[1]), "maskless": other_of(results[1], masks=False)}
    for name, other in others.items():
        thumbnails = thumbnails_of(results[0], other)
        report.write_report(folder / f"{name}.html", metrics_of(scores), scores, thumbnails, other)
    return folder


class Page:
    """What a reader sees and does."""

    def __init__(self, driver, path):
        self.driver = driver
        driver.get(path.as_uri())

    def wait(self, script: str) -> None:
        """Until a condition in JavaScript holds."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 60, 0.1).until(lambda driver: driver.execute_script(f"return {script}"))

    def find(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.get_property("textContent") for element in self.find(selector)]

    def rows(self, table: str) -> list[str]:
        """The cells of each row, with tabs between them."""
        cells = "[...row.cells].map((cell) => cell.textContent).join('\\t')"
        read = f"return [...document.querySelectorAll(arguments[0])].map((row) => {cells})"
        return self.driver.execute_script(read, f"{table} tr")

    def shown(self) -> list[tuple[str, float]]:
        """(expression, IoU) of each card."""
        return list(zip(self.texts(".said"), map(float, self.texts(".score b")), strict=True))

    def choose(self, order: str) -> None:
        self.find(f"#sort option[value={order}]")[0].click()

    def write(self, query: str) -> None:
        (box,) = self.find("#query")
        box.clear()
        box.send_keys(query)

    def click(self, selector: str) -> None:
        event = "new MouseEvent('click', {bubbles: true})"
        self.driver.execute_script(f"document.querySelector(arguments[0]).dispatchEvent({event})", selector)

    def pixels(self, selector: str) -> np.ndarray:
        """H x W x 4 of each canvas: n H W 4, uint8."""
        read = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        script = f"return [...document.querySelectorAll(arguments[0])].map((c) => [c.height, c.width, {read}])"
        painted = self.driver.execute_script(script, selector)
        return np.stack([np.reshape(data, (height, width, 4)) for height, width, data in painted])

    def gallery_top(self) -> float:
        """Distance from the window's top, in pixels, once nothing moves any more."""
        script = """const [done] = [arguments[0]]; let last = NaN;
            const look = () => last === (last = document.getElementById("gallery").getBoundingClientRect().top)
                ? done(last) : setTimeout(look, 250); look();"""
        return self.driver.execute_async_script(script)

    def count(self) -> int:
        """How many expressions fit, as the page tells."""
        return int(self.texts("#count b")[0].replace(",", ""))


@needs_browser
@pytest.mark.parametrize("name", ["alone", "compared"])
def test_nothing_is_asked_for_and_nothing_runs(browser, pages, name):
    requested(browser), browser.get_log("browser")
    page = Page(browser, pages / f"{name}.html")
    page.choose("split")
    said = page.texts(".said")[:9]
    assert {*HOSTILE[:4], *HOSTILE[6:9]} <= set(said) and any(text.startswith("\\u202e") for text in said)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('.said *, #subtitle i, #records b').length") == 0
    page.click(".card")
    assert page.find("#detail-said")[0].text == HOSTILE[0]
    assert requested(browser) <= {"file:", "data:"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    page.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert len(page.texts(".shot img")) == 2 * PAGE


@needs_browser
def test_a_policy_stands_behind_the_escaping(browser, pages):
    """Should markup of an expression ever get into the page, it still could not run."""
    page = Page(browser, pages / "alone.html")
    frame = "<iframe srcdoc='<script>top.hacked = 6</script>'></iframe>"
    for markup in ("<img src=x onerror='window.hacked = 5'>", frame):
        browser.execute_script("document.getElementById('cards').innerHTML = arguments[0]", markup)
    script = "Object.assign(document.createElement('script'), {text: 'hacked = 7'})"
    browser.execute_script(f"document.body.append({script})")
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert browser.execute_script("return window.hacked") is None and page.find("h1")[0].text == "RefCOCO val"
    browser.get_log("browser")


def grouped(made: list, key) -> list[list]:
    """By `key`, then the expressions of one object with the first of them."""
    groups: dict[tuple, list] = {}
    for one in sorted(made, key=key):
        groups.setdefault((one.score.image_name, one.mask.tobytes()), []).append(one)
    return list(groups.values())


@needs_browser
def test_sorting_and_pages(browser, pages, results):
    """Expressions of one object stand together on one page, where the first of them would stand alone."""
    page = Page(browser, pages / "compared.html")
    middle = median_high(one.score.iou for one in results[0])
    change = {a.score.index: a.score.iou - b.score.iou for a, b in zip(*results, strict=True)}
    keys = {
        "worst": lambda one: one.score.iou,
        "best": lambda one: -one.score.iou,
        "median": lambda one: abs(one.score.iou - middle),
        "lost": lambda one: change[one.score.index],
        "gained": lambda one: -change[one.score.index],
        "split": lambda one: one.score.index,
    }
    assert set(keys) == {option.get_attribute("value") for option in page.find("#sort option")}
    for order, key in keys.items():
        page.choose(order)
        groups = grouped(results[0], key)
        seen, pages_of_it = [], [page.shown()]
        while page.find("#next")[0].is_enabled():
            page.click("#next")
            pages_of_it.append(page.shown())
        for cards in pages_of_it:
            while cards:
                size = len(groups[len(seen)])
                seen.append([cards.pop(0)[1] for _ in range(size)])  # IndexError: an object on two pages
        assert [len(group) for group in groups].count(2) == COUNT // 3 and len(seen) == len(groups)
        for cards, group in zip(seen, groups, strict=True):
            assert cards == pytest.approx([one.score.iou for one in group], abs=0.00501), order
        assert page.find("#place")[0].text.endswith(f"–{COUNT} of {COUNT}")
    page.choose("worst")
    expected = [place for group in grouped(results[0], keys["worst"]) for place in range(len(group))][:PAGE]
    assert [int("follows" in card.get_attribute("class")) for card in page.find(".card")[:PAGE]] == expected


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_pick_leads_to_what_it_chose(browser, pages, width):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page = Page(browser, pages / "compared.html")
    focused = "return document.activeElement.id"
    ways = {
        "[data-facet=iou]:nth-of-type(1)": "pointer",
        "[data-facet=length]:nth-of-type(3)": "keyboard",
        "[data-facet=size]:nth-of-type(4)": "pointer",
        "#changed tr:nth-child(3) button": "keyboard",
        "#words tbody tr:nth-child(2) button": "pointer",
    }
    for selector, way in ways.items():
        browser.execute_script("window.scrollTo({top: 0, behavior: 'instant'})")
        assert page.gallery_top() > 844
        (target,) = page.find(selector)
        if way == "keyboard":
            browser.execute_script("arguments[0].focus()", target)
            browser.switch_to.active_element.send_keys("\ue007")  # Enter
        else:
            page.click(selector)
        assert abs(page.gallery_top()) < 2 and browser.execute_script(focused) == "count", selector
        assert page.count() < COUNT
        browser.execute_script("window.scrollTo({top: 0, behavior: 'instant'})")
        page.click(selector)  # lets go
        assert page.gallery_top() > 844 and page.count() == COUNT, selector
    for motion, behaviour in (("no-preference", "smooth"), ("reduce", "auto")):
        media = {"features": [{"name": "prefers-reduced-motion", "value": motion}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        style = "return getComputedStyle(document.documentElement).scrollBehavior"
        assert browser.execute_script(style) == behaviour
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_words_and_charts_choose(browser, pages, results):
    page = Page(browser, pages / "alone.html")
    sentences = [one.score.sentence for one in results[0]]
    words = [set(sentence.split()) for sentence in sentences]
    queries = {
        "man": lambda own: "man" in own,
        "man left": lambda own: {"man", "left"} <= own,
        "man -left": lambda own: "man" in own and "left" not in own,
        "wom*": lambda own: "woman" in own,
        "xyz": lambda own: False,
    }
    for query, fits in queries.items():
        page.write(query)
        assert page.count() == sum(fits(own) for own in words), query
    assert "No expression fits" in page.find("#cards")[0].text
    page.write("")
    scores = [one.score for one in results[0]]
    picks = {"iou": report.histogram(scores), "length": None, "size": None}
    for facet in picks:
        for number, told in enumerate(page.texts(f"[data-facet={facet}] title")):
            page.click(f"[data-facet={facet}]:nth-of-type({number + 1})")
            assert page.count() == int(told.split(": ")[1].split()[0]), told
            page.click("#chips button")
    assert page.count() == COUNT
    word = page.texts("#words tbody button")[0]
    page.click("#words tbody tr")
    assert page.count() == int(page.texts("#words tbody td:nth-child(2)")[0]) and word in page.shown()[0][0]


def agree(pane: np.ndarray, image: np.ndarray, mask: np.ndarray) -> None:
    """`pane` differs from `image` where `mask` is: but for a few pixels whose tint has the image's colour."""
    assert ((pane != image).any(-1) != mask).mean() <= 0.02


@needs_browser
@pytest.mark.parametrize("name", ["alone", "maskless"])
def test_one_of_them_large(browser, pages, results, name):
    page = Page(browser, pages / f"{name}.html")
    page.choose("split")
    one, after = grouped(results[0], lambda one: one.score.index)[6]  # the 10th and the 11th
    page.click(".card:nth-child(10)")
    page.wait("document.querySelectorAll('.panes canvas').length === 4")
    image, *panes = page.pixels(".panes canvas")
    for pane, mask in zip(panes, (one.mask, one.logits >= 0, one.mask | (one.logits >= 0)), strict=True):
        agree(pane, image, mask)
    assert np.array_equal(page.pixels("#stage")[0], panes[-1])
    page.click(".panes button:nth-child(2)")
    assert np.array_equal(page.pixels("#stage")[0], panes[0])
    assert page.find("#no-masks")[0].is_displayed() == (name == "maskless")
    browser.switch_to.active_element.send_keys("\ue014")  # the right arrow key
    assert page.find("#detail-said")[0].text == after.score.sentence
    assert page.texts(".panes [aria-pressed=true]") == ["Ground truth"]


@needs_browser
def test_both_masks(browser, pages, results):
    order = [one.score.index for group in grouped(results[0], lambda one: one.score.index) for one in group]
    missed = [one.mask & (other.logits < 0) for one, other in zip(*results, strict=True)]
    for index in sorted(order[:PAGE], key=lambda i: -missed[i].sum())[:2]:
        page = Page(browser, pages / "compared.html")
        page.choose("split")
        page.click(f".card:nth-child({order.index(index) + 1})")
        page.wait("document.querySelectorAll('.panes canvas').length === 4")
        assert page.texts(".panes button") == ["Image", "Ground truth", "Before", "Now"]
        image, truth, before, now = page.pixels(".panes canvas")
        mask, ours, theirs = results[0][index].mask, results[0][index].logits >= 0, results[1][index].logits >= 0
        for pane, tinted in ((truth, mask), (before, mask | theirs), (now, mask | ours)):
            agree(pane, image, tinted)
        for part, colour in ((missed[index], 2), (mask & theirs, 1), (theirs & ~mask, 0)):  # blue, green, red
            assert not part.any() or np.argmax(before[part][:, :3].mean(0)) == colour
        assert missed[index].any() and (before != now).any()
        for number, pane in ((3, before), (4, now)):
            page.click(f".panes button:nth-child({number})")
            assert np.array_equal(page.pixels("#stage")[0], pane)
    assert not page.find("#no-masks")[0].is_displayed()


@needs_browser
def test_large_images_keep_their_pixels_and_small_ones_are_not_blurred(browser, tmp_path):
    """A photograph is shown at 640 pixels; one of 40 is enlarged pixel by pixel."""
    rng = np.random.default_rng(0)
    made = []
    for index, (height, width) in enumerate([(750, 1000), (30, 40), (300, 400)]):
        image, mask = rng.integers(0, 256, (height, width, 3), dtype=np.uint8), np.ones((height, width), bool)
        score = SampleScore(index, f"unc_val_{index}", 1, 2 + index, 1, "man", f"image{index}", box_iou=index / 2)
        made.append(Prediction(score, image, mask, np.ones((height, width), np.float32), mask))
    scores = [one.score for one in made]
    report.write_report(tmp_path / "report.html", metrics_of(scores), scores, thumbnails_of(made))
    page = Page(browser, tmp_path / "report.html")
    assert (page.texts("#summary th")[-1], page.texts("#summary td")[-1]) == ("Acc@0.5", "66.67")
    page.choose("split")
    kept, enlarged = ("scale-down", "auto"), ("contain", "pixelated")
    for place, size, style in ((1, 640, kept), (2, 40, enlarged), (3, 400, kept)):
        page.click(f".card:nth-child({place})")
        page.wait(f"document.getElementById('stage').width === {size}")
        (stage,) = page.find("#stage")
        assert tuple(map(stage.value_of_css_property, ("object-fit", "image-rendering"))) == style
        assert stage.rect["width"] == 640
        page.click("#close")


@needs_browser
def test_what_changed(browser, pages, results):
    page = Page(browser, pages / "compared.html")
    changes = sorted(a.score.iou - b.score.iou for a, b in zip(*results, strict=True))
    for order, sign in (("lost", 1), ("gained", -1)):  # what lost most comes first
        assert page.find("#sort")[0].get_property("value") == "lost" or order == "gained"
        page.choose(order)
        shown = [float(text.replace("−", "-").replace("±", "")) for text in page.texts(".gain")]
        assert shown[0] == pytest.approx(sign * min(sign * change for change in changes), abs=0.00501)
    expected = {"Better": sum(c > 0.05 for c in changes), "Worse": sum(c < -0.05 for c in changes)}
    for number, row in enumerate(page.texts("#changed td:nth-child(1)")):
        page.click(f"#changed tr:nth-child({number + 1})")
        told = int(page.texts("#changed td:nth-child(2)")[number])
        assert page.count() == told == expected.get(row, told)
    ours, theirs = (sum(o.score.iou for o in side) / COUNT * 100 for side in results)
    assert page.texts("#summary .difference td")[-1] == "–"  # neither has boxes
    assert page.texts("#summary .difference td")[2] == f"{ours - theirs:+.2f}".replace("-", "−")


@needs_browser
def test_generalised_metrics_have_a_table_of_their_own(browser, pages, results, tmp_path):
    """Beside an older result, which lacks them; a report without them has no such table."""
    scores = [one.score for one in results[0]]
    whole = summarise(scores, "unc", is_generalised=True)["generalised"]
    metrics = metrics_of(scores) | {"generalised": whole}
    metrics["checkpoint"] |= {"file": "weights/restr_grefcoco/grefcoco_400000.pth"}
    without = whole["n_no_target"]
    assert without
    report.write_report(tmp_path / "page.html", metrics, scores, thumbnails_of(results[0]), other_of(results[1]))
    page = Page(browser, tmp_path / "page.html")
    (table,) = page.find("#generalised")
    head, ours, theirs, difference = (row.split("\t") for row in page.rows("#generalised"))
    assert table.rect["width"] <= page.find("#summary")[0].rect["width"]  # no column is cut
    assert table.is_displayed() and head[1:6] == ["gIoU", "cIoU", "N-acc", "T-acc", "Prec@0.7, with an object"]
    assert ours[1:] == ["–" if whole[name] is None else f"{whole[name]:.2f}" for name in GENERALISED]
    assert set(theirs[1:]) == set(difference[1:]) == {"–"}
    assert page.texts("#subtitle")[0].endswith(f"{without} expressions without an object")
    page = Page(browser, pages / "compared.html")
    assert not page.find("#generalised")[0].is_displayed() and "without" not in page.texts("#subtitle")[0]
