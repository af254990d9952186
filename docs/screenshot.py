"""Take the picture of the README: the dependency report of ResNet-50, as Chromium shows it.

python docs/screenshot.py              writes docs/img/report-resnet50.png
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from PIL import Image
from playwright.sync_api import sync_playwright

from pdc_fx.export.inspection import render_inspection
from pdc_fx.pipeline import inspect

OUTPUT = Path(__file__).resolve().parent / "img" / "report-resnet50.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Write the page to a scratch folder, open it, keep the picture in a palette of 256 colours."""
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        sys.exit("no Chromium is installed")
    graph = inspect(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224))
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        path = Path(scratch) / "report.html"
        path.write_text(render_inspection(graph, title="torchvision:resnet50"), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=executable)
        page = browser.new_page(viewport={"width": 1280, "height": 1110}, device_scale_factor=1.5, color_scheme="light")
        page.goto(path.as_uri())
        page.wait_for_timeout(200)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
