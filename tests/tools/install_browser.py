"""A Chromium for the tests of the page: by Debian's packages for root, else by Playwright's own download.

    PYTHONPATH=tests/support python tests/tools/install_browser.py

Does nothing where there is one. Exits with 1, and the reason on stderr, where none can be had.
"""

import os
import shutil
import subprocess
import sys

from browsers import chromium

DEBIAN = ("chromium", "fonts-dejavu-core")
PATIENCE = 300  # seconds for each command: without a network some wait for very long
PLAYWRIGHT = [sys.executable, "-m", "playwright", "install", "chromium"]


def ways() -> list[list[str]]:
    """The commands to try one after the other."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN]
        return [["apt-get", "update", "-qq"], install, PLAYWRIGHT]
    return [PLAYWRIGHT]


def main() -> None:
    said, asked = "", {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ways():
        if found := chromium():
            print(found)
            return
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=asked, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            said = f"{command[0]} did not end in {PATIENCE} seconds"
            continue
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
    if found := chromium():
        print(found)
        return
    sys.exit(f"no browser could be installed ({said[:200]}): install chromium by hand, as root.")


if __name__ == "__main__":
    main()
