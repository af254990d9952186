"""Take the pictures of the README, as Chromium shows the pages: the dependency report of ResNet-50, the report of the demonstration.

python docs/screenshot.py              writes docs/img/report-resnet50.png and docs/img/report-digits.png; takes a minute or two
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from playwright.sync_api import sync_playwright

from pdc_fx import demo
from pdc_fx.artifacts import REPORT
from pdc_fx.export.inspection import render_inspection
from pdc_fx.pipeline import inspect

FOLDER = Path(__file__).resolve().parent / "img"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take(browser: Any, path: Path, output: Path, *, until: str | None = None) -> None:
    """Keep the page's first screen, or all of it down to the end of an element, in a palette of 256 colours."""
    page = browser.new_page(viewport={"width": 1280, "height": 1110}, device_scale_factor=1.5, color_scheme="light")
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    clip = None
    if until is not None:
        box = page.locator(until).bounding_box()
        clip = {"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 24}
    picture = Image.open(io.BytesIO(page.screenshot(full_page=until is not None, clip=clip))).convert("RGB")
    page.close()
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(output, optimize=True)


def main() -> None:
    """Write the pages to a scratch folder and open them."""
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        sys.exit("no Chromium is installed")
    graph = inspect(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224))
    with tempfile.TemporaryDirectory() as scratch:
        inspection, digits = Path(scratch) / "report.html", Path(scratch) / "digits"
        inspection.write_text(render_inspection(graph, title="torchvision:resnet50"), encoding="utf-8")
        demo.run(digits, None)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable)
            take(browser, inspection, FOLDER / "report-resnet50.png")
            take(browser, digits / REPORT, FOLDER / "report-digits.png", until=".network")
            browser.close()


if __name__ == "__main__":
    main()
