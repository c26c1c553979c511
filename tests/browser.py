"""A headless Chromium for tests and for pictures of pages: Debian's package, driven by Playwright.

python -m tests.browser DATASET FILE    makes the picture of a report that the pages show
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, sync_playwright

from reinforce.inspection.report import write_report
from reinforce.inspection.stats import inspect_dataset

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TO_INSTALL = "no Chromium here; install it with: apt-get install --no-install-recommends chromium"

_WIDTH, _HEIGHT, _GAP = 1280, 1700, 24
_FLAGS = (
    "--no-sandbox",  # it does not start as root otherwise; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser that talks to nobody. It takes a second to start."""
    assert CHROMIUM, TO_INSTALL
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def photograph_report(dataset: str, target: Path) -> None:
    """The top of a dataset's report and its lowest-scored samples, side by side, as a PNG."""
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        path = Path(folder) / "report.html"
        write_report(dataset, path, inspect_dataset(dataset))
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.goto(path.as_uri())
        tops = (0.0, float(page.evaluate("document.getElementById('lowest').offsetTop")) - 16)
        parts = [
            Image.open(
                io.BytesIO(page.screenshot(full_page=True, clip=FloatRect(x=0, y=top, width=_WIDTH, height=_HEIGHT)))
            )
            for top in tops
        ]
    whole = Image.new("RGB", (2 * _WIDTH + _GAP, _HEIGHT), "#c8ccd2")
    for index, part in enumerate(parts):
        whole.paste(part, (index * (_WIDTH + _GAP), 0))
    small = whole.resize((whole.width * 5 // 8, whole.height * 5 // 8), Image.Resampling.LANCZOS)
    small.quantize(192).save(target, optimize=True)


if __name__ == "__main__":
    photograph_report(sys.argv[1], Path(sys.argv[2]))
