"""The report in a real browser: every picture is shown, nothing is fetched, nothing sticks out on a telephone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from reinforce.inspection.report import write_report
from tests.browser import CHROMIUM, TO_INSTALL, open_browser
from tests.reports import build_everything, full_figures

Scheme = Literal["light", "dark"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=TO_INSTALL)

SECTIONS = (
    "What is there",
    "What was dropped or is null",
    "Captions",
    "How close captions are to their images",
    "How far views are from the clean image",
    "Neighbours",
    "What it cost",
    "The 2 lowest-scored samples",
    "The 2 highest-scored samples",
    "3 samples at random",
    "Images that look alike",
    "Dropped samples",
)


@dataclass
class Seen:
    """What the browser reported."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    build_everything(folder)
    write_report(str(folder / "dataset"), folder / "page.html", full_figures(folder / "dataset"))
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


def opened(browser: Browser, path: Path, width: int, seen: Seen, scheme: Scheme = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    return page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_and_fits(browser: Browser, path: Path, width: int) -> None:
    seen = Seen()
    page = opened(browser, path, width, seen)
    assert seen.messages == []
    assert {url.split(":")[0] for url in seen.requests} <= {"file", "data"}
    assert [url for url in seen.requests if url.startswith("file")] == [path.as_uri()]
    images = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.alt])")
    assert len(images) == 7 * 4 + 2 + 2  # the samples with three views each, near-duplicates, drops that can be seen
    assert all(is_complete and natural_width > 0 and alt for is_complete, natural_width, alt in images)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == "dataset: a reinforced dataset"
    assert page.locator("h1").all_inner_texts() == ["dataset"]
    headings = page.locator("h2").all_inner_texts()
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)
    page.close()


def test_marks_are_drawn_where_they_belong(browser: Browser, path: Path) -> None:
    page = opened(browser, path, 1280, Seen())
    bars = page.locator("#neighbours ~ .columns .bars").first
    box, track = bars.locator(".good").bounding_box(), bars.locator(".track").bounding_box()
    assert box
    assert track
    assert box["width"] / track["width"] == pytest.approx(0.5, abs=0.01)
    outside = page.evaluate("""[...document.querySelectorAll('.plot rect, .plot line, .plot circle')].filter(mark => {
        const own = mark.getBoundingClientRect(), plot = mark.ownerSVGElement.getBoundingClientRect();
        return own.left < plot.left - 1.5 || own.right > plot.right + 1.5 || own.bottom > plot.bottom + 1.5;
    }).length""")
    assert outside == 0
    page.close()


def test_a_dark_page_for_those_who_ask_for_one(browser: Browser, path: Path) -> None:
    colours = []
    schemes: tuple[Scheme, ...] = ("light", "dark")
    for scheme in schemes:
        page = opened(browser, path, 390, Seen(), scheme)
        style = "getComputedStyle(document.body)"
        colours.append(page.evaluate(f"[{style}.backgroundColor, {style}.color]"))
        page.close()
    (light, ink), (dark, chalk) = colours
    assert light == "rgb(255, 255, 255)"
    assert sum(map(int, dark[4:-1].split(","))) < 100 < 600 < sum(map(int, chalk[4:-1].split(",")))
    assert ink != chalk
