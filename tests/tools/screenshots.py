"""The pictures of the chat page in docs/images, of a server that runs with a drafter.

    sparsedraft serve TARGET --drafter DRAFTER --parallel 1 --port 8000
    PYTHONPATH=tests/support python tests/tools/screenshots.py http://127.0.0.1:8000

`make browser` brings the browser.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from browsers import browser, chromium

OUT = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = {"width": 900, "height": 640}
LARGEST = 150_000  # bytes of a picture
PATIENCE = 600_000  # milliseconds until an answer is there
CHAT = "Write a Python function that merges two sorted lists."
RACE = "Write a Python class for a stack with push, pop and peek."


def shown(page: Any, text: str, button: str, done: str) -> None:
    """Ask, wait for what says that the answer is whole, and look at its end."""
    page.fill("#prompt", text)
    page.click(f"#{button}")
    page.wait_for_selector(done, timeout=PATIENCE)
    page.locator("#prompt").blur()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")


def picture(page: Any, name: str) -> None:
    """Keep what is to be seen. Exits where a picture would be too large for the docs."""
    file = OUT / f"{name}.png"
    page.screenshot(path=file)
    if (size := file.stat().st_size) > LARGEST:
        sys.exit(f"{file} has {size} bytes, and {LARGEST} are the most: ask for shorter answers by --tokens.")
    print(f"{file}: {size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most")
    options = parser.parse_args()
    if (program := chromium()) is None:
        sys.exit("there is no Chromium: `make browser` installs one.")
    OUT.mkdir(exist_ok=True)
    with browser(program) as running:
        page = running.new_page(viewport=SIZE, color_scheme="light")
        page.goto(options.url)
        page.wait_for_selector("#drafter option:nth-child(2)", state="attached")
        page.evaluate(f"document.getElementById('tokens').value = {options.tokens}")
        shown(page, CHAT, "send", ".told:has-text('tokens/s')")
        picture(page, "serve-chat")
        page.click("#clear")
        shown(page, RACE, "race", ".turn > .told:has-text('times as fast')")
        picture(page, "serve-race")


if __name__ == "__main__":
    main()
