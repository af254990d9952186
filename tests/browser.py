"""A real browser for tests of pages: the Chromium that is installed, started by the test, with no network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def installed_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Opened:
    """A page, with everything it asked for and everything that its console said."""

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def running_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser())
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[Opened]:
    """Load ``path`` from ``file://``. Whatever else the page asks for is noted and refused."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    try:
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.messages.append(message.text))
        found.page.on("pageerror", lambda error: found.messages.append(str(error)))

        def answer(route: Any) -> None:
            found.requests.append(route.request.url)
            if route.request.url.startswith(path.as_uri()):
                route.continue_()
            else:
                route.abort()

        found.page.route("**/*", answer)
        found.page.goto(path.as_uri())
        yield found
    finally:
        context.close()


def lit(page: Any) -> set[int]:
    """The nodes that are lit up."""
    return set(
        page.eval_on_selector_all("#view .n", "all => all.flatMap((n, i) => n.classList.contains('on') ? [i] : [])")
    )


def lightness(page: Any) -> float:
    """Of the page's ground, 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3
