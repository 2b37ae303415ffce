"""A real Chromium without a window, for tests of pages; such tests are skipped where it is not installed."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

MISSING = [
    *(f"package {name}" for name in ("gradio", "selenium") if not importlib.util.find_spec(name)),
    *(f"program {name}" for name in ("chromium", "chromedriver") if not shutil.which(name)),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def _needs(missing: list[str]):
    skip = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
    return lambda test: pytest.mark.browser(skip(test))


needs_browser = _needs([name for name in MISSING if name != "package gradio"])
needs_gradio = _needs(MISSING)


@contextmanager
def chromium(width: int = 1280, height: int = 1000) -> Iterator:
    """A selenium driver with an empty profile."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def requested(driver) -> set[str]:
    """Scheme and host of everything that the pages asked for since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = (event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent")
    parts = map(urlsplit, urls)
    return {f"{part.scheme}:{part.hostname or ''}" for part in parts}
