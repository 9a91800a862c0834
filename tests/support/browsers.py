"""A Chromium to look at pages with: the system's, or the one that Playwright downloads."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Its program; None where there is none, or no Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    with sync_playwright() as play:
        own = play.chromium.executable_path
    return own if Path(own).is_file() else None


@contextmanager
def browser(program: str) -> Iterator[Any]:
    """A running headless browser, as Playwright's object."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()
