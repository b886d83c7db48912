"""The app in a real browser: from an upload to ranked results, and not a word to anyone else.

Screenshots of each step are written into the folder ``TFCLIP_SCREENSHOTS``, if that is set.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tfclip.app.galleries import DrawnGallery

pytestmark = [
    pytest.mark.slow,
    # Gradio 6.31 counts its calls with pandas, and pandas 3 dislikes how.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated and will be removed"),
]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
PERSON = 6


@pytest.fixture(scope="module")
def drawn():
    return DrawnGallery()


@pytest.fixture(scope="module")
def address(drawn):
    pytest.importorskip("gradio", reason="Gradio (extra 'app') is not installed")
    from tfclip.app import build_app, serve

    app = build_app(gallery=drawn)
    yield serve(app, wait=False)
    app.close()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright (extra 'browser') is not installed"
    )
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def strangers():
    """Requests to anyone but the app, as they come."""
    return []


@pytest.fixture
def page(browser, address, strangers):
    """The app's page, of a browser that may speak to nobody else."""
    home = urlsplit(address).netloc
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)

    def decide(route):
        if urlsplit(route.request.url).netloc == home:
            route.continue_()
        else:
            strangers.append(route.request.url)
            route.abort()

    context.route("**/*", decide)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda answer: problems.append(answer.url) if answer.status > 399 else None)
    page.goto(address)
    page.wait_for_selector("#search")
    yield page
    context.close()
    assert problems == []


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Take a screenshot of a step and return its pixels."""
    chosen = os.environ.get("TFCLIP_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def take(page, name):
        page.wait_for_function("[...document.images].every(image => image.complete)")
        page.wait_for_timeout(400)  # Gradio fades results in
        page.screenshot(path=folder / f"{name}.png", full_page=True)
        return np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))

    return take


@pytest.fixture
def frames(drawn, tmp_path):
    paths = []
    for position, frame in enumerate(drawn.query(PERSON).frames):
        paths.append(tmp_path / f"{position:02d}.png")
        Image.fromarray(frame).save(paths[-1])
    return paths


def test_uploaded_frames_lead_to_the_same_drawn_person(page, strangers, picture, frames):
    empty = picture(page, "1-page")
    page.set_input_files("#files input[type=file]", frames)
    page.wait_for_selector("#sheets img")
    picture(page, "2-upload")
    page.click("#search")
    page.wait_for_selector("#results .tf-card")
    cards = page.locator("#results .tf-card:not(.tf-query)")
    first = cards.nth(0).inner_text()
    assert f"person {PERSON}" in first
    distances = [float(text) for text in page.locator("#results figcaption b").all_inner_texts()]
    assert distances == sorted(distances)
    assert f"{distances[0]:.3f} · cam " in first
    assert len(distances) == 8
    page.wait_for_selector("#looked-at img")
    shown = page.evaluate(
        "[...document.querySelectorAll('#results img, #looked-at img')].map(i => i.naturalWidth)"
    )
    assert len(shown) == 8 + 1 + 1  # results, query, what was looked at
    assert min(shown) > 30
    results = picture(page, "3-results")
    assert results.shape[0] > empty.shape[0]
    assert strangers == []


def test_one_click_shows_a_newcomer_ranked_results(page, strangers, picture):
    page.click("#example")
    page.wait_for_selector("#looked-at img")
    assert page.locator("#results .tf-right").count() == 3
    assert "tf-right" in (
        page.locator("#results .tf-card:not(.tf-query)").nth(0).get_attribute("class") or ""
    )
    picture(page, "4-example")
    assert strangers == []


def test_a_bad_upload_is_one_sentence_on_the_page(page, strangers, picture, tmp_path):
    broken = tmp_path / "holiday.mp4"
    broken.write_bytes(b"no video at all")
    page.set_input_files("#files input[type=file]", broken)
    toast = page.locator("[data-testid=toast-body]")
    toast.wait_for()
    assert "holiday.mp4 is not a readable video" in toast.inner_text()
    picture(page, "5-bad-upload")
    assert strangers == []


def test_the_browser_refuses_what_the_page_would_fetch_from_elsewhere(page):
    """The policy holds, whatever a later version of Gradio would like to load."""
    refused = page.evaluate(
        "() => fetch('http://localhost.example/x').then(() => 'fetched', error => String(error))"
    )
    assert "TypeError" in refused
