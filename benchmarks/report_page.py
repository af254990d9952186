"""How large the pages of ``pdc-fx inspect`` are, how long a browser takes to open them, and whether zooming stays smooth.

    python benchmarks/report_page.py                       the models below, into benchmarks/results/report-page.json
    python benchmarks/report_page.py --models resnet50 --pages DIR

Each page is opened from its file in headless Chromium, 1280 x 900, without a network and without a GPU. *open* is from the start
of the navigation until the second frame after the load event, the median of three fresh contexts; *zoom* is the time between
frames while the wheel zooms into the middle of the graph and out again, forty steps, median and worst. Both are given as the
clock has them, which counts whatever else the machine does, and as processor time of all of Chromium's processes; for *zoom*
that is per step. Fails (exit code 1) above 8 MB, or above 3 s of the clock to open, so it wants an idle machine. While the wheel
turns, a page of 500 operators or more leaves out texts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from playwright.sync_api import sync_playwright
from torchvision.models import efficientnet

from pdc_fx.export.inspection import render_inspection
from pdc_fx.models import build_model, example_inputs
from pdc_fx.pipeline import inspect

MODELS = ("resnet50", "densenet201", "efficientnet_v2_l", "efficientnet_v2_l_twice")
"""The last one is built here, with every stage twice as deep, since the largest of torchvision's have 1,000 operators. So is
``densenet_218``, of 218 layers in its blocks and 11,751 edges, which is more than a page opens within the allowed time."""

ALLOWED_SECONDS, ALLOWED_BYTES = 3.0, 8e6
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "results" / "report-page.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

OPENED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() / 1000))))"
ZOOMED = """async () => {
  const graph = document.getElementById("graph");
  const { left, top, width, height } = graph.getBoundingClientRect();
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  let before = await frame();
  for (let step = 0; step < 40; step++) {
    const deltaY = step < 20 ? -60 : 60;
    const place = { clientX: left + width / 2, clientY: top + height / 2 };
    graph.dispatchEvent(new WheelEvent("wheel", { deltaY, ctrlKey: true, cancelable: true, bubbles: true, ...place }));
    const now = await frame();
    times.push(now - before);
    before = now;
  }
  return times;
}"""


def network(name: str) -> tuple[torch.nn.Module, Any]:
    """A model without its weights, and what it is called with."""
    example = torch.zeros(1, 3, 224, 224)
    if name == "densenet_218":
        return torchvision.models.DenseNet(32, (6, 12, 100, 100), 64), example
    if name == "efficientnet_v2_l_twice":
        stages, last = efficientnet._efficientnet_conf("efficientnet_v2_l")
        deeper = [dataclasses.replace(stage, num_layers=2 * stage.num_layers) for stage in stages]
        return efficientnet.EfficientNet(deeper, dropout=0.4, last_channel=last), example
    loaded = build_model(f"torchvision:{name}")
    return loaded.model, example_inputs(loaded, [])


def made(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The page of a model, and what it took."""
    model, example = network(name)
    start = time.perf_counter()
    graph = inspect(model, example)
    analysed = time.perf_counter()
    page = render_inspection(graph, title=name)
    rendered = time.perf_counter()
    path = folder / f"{name}.html"
    path.write_text(page, encoding="utf-8")
    figures = {"operators": len(graph.nodes), "edges": len(graph.edges), "groups": len(graph.groups.groups)}
    seconds = {"analyse": round(analysed - start, 3), "render": round(rendered - analysed, 3)}
    return path, {"model": name, **figures, "bytes": path.stat().st_size, "seconds": seconds}


def shown(browser: Any, path: Path) -> dict[str, Any]:
    """Seconds to open a page, and milliseconds per frame of zooming."""
    session = browser.new_browser_cdp_session()

    def processor_time() -> float:
        return sum(process["cpuTime"] for process in session.send("SystemInfo.getProcessInfo")["processInfo"])

    opened, frames, opening, zooming = [], [], [], []
    for _ in range(3):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
        page = context.new_page()
        before = processor_time()
        page.goto(path.as_uri(), timeout=300_000)
        opened.append(page.evaluate(OPENED))
        opening.append(processor_time() - before)
        page.evaluate("document.getElementById('graph').scrollIntoView()")
        before = processor_time()
        times = page.evaluate(ZOOMED)
        zooming.append(1000 * (processor_time() - before) / len(times))
        frames += times
        context.close()
    return {
        "open_s": round(statistics.median(opened), 3),
        "open_cpu_s": round(statistics.median(opening), 3),
        "zoom_ms": {"median": round(statistics.median(frames), 1), "worst": round(max(frames), 1)},
        "zoom_cpu_ms": round(statistics.median(zooming), 1),
    }


def main() -> int:
    """Measure, print, write; 1 if a page is too large or too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--pages", type=Path, help="keep the pages in this folder")
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        sys.exit("no Chromium is installed")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = options.pages or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=executable)
        for name in options.models:
            path, row = made(name, folder)
            rows.append({**row, **shown(browser, path)})
            print(json.dumps(rows[-1]), flush=True)
        version = browser.version
        browser.close()
    load = os.getloadavg()[0]
    machine = {
        "chromium": version,
        "cpu_threads": 1,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": round(load, 1),
        "cores": os.cpu_count(),
    }
    options.output.write_text(json.dumps({"environment": machine, "pages": rows}, indent=1) + "\n")
    return int(any(row["open_s"] > ALLOWED_SECONDS or row["bytes"] > ALLOWED_BYTES for row in rows))


if __name__ == "__main__":
    sys.exit(main())
