"""The report in a real browser: opened from disk, it asks for nothing, runs nothing from data, and can be used."""

from statistics import median_high

import pytest

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
    """A report, and one that compares."""
    folder = tmp_path_factory.mktemp("page")
    scores = [one.score for one in results[0]]
    for name, other in (("alone", None), ("compared", other_of(results[1]))):
        report.write_report(folder / f"{name}.html", metrics_of(scores), scores, thumbnails_of(results[0]), other)
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

    def count(self) -> int:
        """How many expressions fit, as the page tells."""
        return int(self.texts("#count b")[0].replace(",", ""))


@needs_browser
@pytest.mark.parametrize("name", ["alone", "compared"])
def test_nothing_is_asked_for_and_nothing_runs(browser, pages, name):
    requested(browser), browser.get_log("browser")
    page = Page(browser, pages / f"{name}.html")
    page.choose("split")
    said = page.texts(".said")
    assert said[:4] == list(HOSTILE[:4]) and said[6:8] == list(HOSTILE[6:8]) and "\\u202e" in said[4]
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


@needs_browser
def test_sorting_and_pages(browser, pages, results):
    page = Page(browser, pages / "alone.html")
    ious = sorted(one.score.iou for one in results[0])
    middle = median_high(ious)
    expected = {"worst": ious, "best": ious[::-1], "median": sorted(ious, key=lambda iou: abs(iou - middle))}
    for order, values in expected.items():
        page.choose(order)
        assert [iou for _, iou in page.shown()] == pytest.approx(values[:PAGE], abs=0.00501), order
    page.choose("worst")
    seen = [iou for _, iou in page.shown()]
    while page.find("#next")[0].is_enabled():
        page.click("#next")
        seen += [iou for _, iou in page.shown()]
    assert seen == pytest.approx(ious, abs=0.00501) and page.find("#place")[0].text == f"145–{COUNT} of {COUNT}"


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


@needs_browser
def test_one_of_them_large(browser, pages, results):
    page = Page(browser, pages / "alone.html")
    page.choose("split")
    page.click(".card:nth-child(13)")
    page.wait("document.querySelectorAll('canvas').length === 4")
    pixels = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    painted = f"return [...document.querySelectorAll('canvas')].map((c) => {pixels})"
    image, truth, found, both = browser.execute_script(painted)
    one = results[0][12]
    differs = [[x != y for x, y in zip(image, pane, strict=True)] for pane in (truth, found, both)]
    tinted = [[any(pane[i : i + 3]) for i in range(0, len(pane), 4)] for pane in differs]
    for pane, mask in zip(tinted, (one.mask, one.logits >= 0, one.mask | (one.logits >= 0)), strict=True):
        assert sum(a != b for a, b in zip(pane, mask.ravel().tolist(), strict=True)) <= 0.02 * mask.size
    browser.switch_to.active_element.send_keys("\ue014")  # the right arrow key
    assert page.find("#detail-said")[0].text == results[0][13].score.sentence


@needs_browser
def test_what_changed(browser, pages, results):
    page = Page(browser, pages / "compared.html")
    changes = sorted(a.score.iou - b.score.iou for a, b in zip(*results, strict=True))
    shown = [float(text.replace("−", "-").replace("±", "")) for text in page.texts(".gain")]
    assert shown == pytest.approx(changes[:PAGE], abs=0.00501)  # what lost most comes first
    page.choose("gained")
    shown = [float(text.replace("−", "-").replace("±", "")) for text in page.texts(".gain")]
    assert shown == pytest.approx(changes[::-1][:PAGE], abs=0.00501)
    expected = {"Better": sum(c > 0.05 for c in changes), "Worse": sum(c < -0.05 for c in changes)}
    for number, row in enumerate(page.texts("#changed td:nth-child(1)")):
        page.click(f"#changed tr:nth-child({number + 1})")
        told = int(page.texts("#changed td:nth-child(2)")[number])
        assert page.count() == told == expected.get(row, told)
    ours, theirs = (sum(o.score.iou for o in side) / COUNT * 100 for side in results)
    assert page.texts("#summary .difference td")[2] == f"{ours - theirs:+.2f}".replace("-", "−")
