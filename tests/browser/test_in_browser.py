"""Notebooks as a reader meets them: opened in JupyterLab, run by its menu, and their slider moved."""

import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    not os.environ.get("IADD_BROWSER"), reason="it takes minutes and a browser: run `make test-browser`"
)
SECONDS = 300  # for all cells of a notebook, on a busy machine and without stored runs
LARGEST = 300_000  # bytes of a screenshot

CELLS = ".jp-Notebook .jp-CodeCell"
ALL_RUN = f"""() => {{
    const prompts = [...document.querySelectorAll("{CELLS} .jp-InputPrompt")].map(each => each.innerText);
    const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
    return failed || prompts.length > 0 && prompts.every(each => /^\\[\\d+\\]:/.test(each));
}}"""
# What an <img> shows, as the bytes of its file.
BYTES = """async image => {
    const content = await (await fetch(image.src)).arrayBuffer();
    return Array.from(new Uint8Array(content));
}"""


def run_all(page, address: str, name: str) -> None:
    """Open a notebook, choose Run All Cells in the menu, and wait for the last cell."""
    page.goto(address.format(name))
    page.locator(CELLS).first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").or_(page.locator('[title*="Idle"]')).first.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
    page.wait_for_function(ALL_RUN, timeout=1000 * SECONDS)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.all_inner_texts() == []


def take(page, top, path: Path, *, height: int) -> None:
    """A picture of the page from `top` on, without the list of files."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    page.keyboard.press("Control+b")
    page.wait_for_timeout(500)
    top.evaluate("each => each.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(500)
    assert page.locator(".Toastify__toast").count() == 0  # nothing lies over it
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, optimize=True)
    assert path.stat().st_size < LARGEST


def pixels(image) -> tuple[tuple[int, int], bytes]:
    """The size and colours of what an <img> shows."""
    shown = Image.open(io.BytesIO(bytes(image.evaluate(BYTES)))).convert("RGB")
    return shown.size, shown.tobytes()


def moved(page, image, before):
    """What the image shows once it shows something else than before."""
    for _ in range(120):
        if (now := pixels(image)) != before:
            return now
        page.wait_for_timeout(250)
    pytest.fail("the picture did not change in 30 s")


def test_the_quickstart_runs_and_shows_its_pictures(page, lab, screenshots):
    run_all(page, lab, "quickstart")
    assert page.get_by_text("at least 15 points more than random real images: True").count() == 1
    pictures = page.locator(".jp-RenderedImage img")
    widths = [picture.evaluate("each => each.naturalWidth") for picture in pictures.all()]
    assert len(widths) in (5, 6)  # one more where the distillation was not stored, and was shown live
    assert min(widths) > 300
    heading = page.get_by_role("heading", name=re.compile("What the images became"))
    take(page, heading, screenshots / "quickstart.png", height=1080)


def test_the_explorers_slider_and_lists_move_its_picture(page, lab, screenshots):
    run_all(page, lab, "explore")
    image, slider = page.locator("img.widget-image"), page.locator(".widget-slider .noUi-handle")
    image.wait_for()
    last = iteration(page)
    shown = {last: pixels(image)}
    for key in ("ArrowLeft", "Home", *["ArrowRight"] * 5):
        before = shown[iteration(page)]
        slider.press(key)
        now = moved(page, image, before)
        assert shown.setdefault(iteration(page), now) == now
    assert list(shown)[2] == 0
    assert len(shown) == 8  # each moment looks different, and nothing jumps
    assert len({size for size, _ in shown.values()}) == 1
    assert 0 < iteration(page) < last

    for part in (image, page.get_by_label("beside it", exact=True)):
        box = part.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= page.viewport_size["width"]
    take(page, page.locator(CELLS).last, screenshots / "explore.png", height=1165)

    before = two = pixels(image)
    for label, value in (("class", "7"), ("beside it", "nothing")):
        page.get_by_label(label, exact=True).select_option(value)
        before = moved(page, image, before)
    assert before[0][0] < two[0][0]  # one run is narrower than two


def iteration(page) -> int:
    """Where the slider stands."""
    return int(page.locator(".widget-readout").inner_text())
