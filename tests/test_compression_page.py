"""The report of an output directory in a real browser: what ``compress`` wrote on disk, read, clicked, pointed at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Opened, installed_browser, lightness, lit, opened
from odd_names import SHOWN, Odd

import pdc_fx
from pdc_fx.artifacts import Compressed, save
from pdc_fx.data import open_data
from pdc_fx.demo import INPUT, DigitNet
from pdc_fx.directory import CERTIFICATE, METRICS, REPORT
from pdc_fx.distill import TrainOptions
from pdc_fx.export.pages.similarity import similarity
from pdc_fx.export.report import render_report
from pdc_fx.ir import ClusterPlan
from pdc_fx.loading import Recipe
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.pipeline import inspect

pytestmark = pytest.mark.skipif(installed_browser() is None, reason="PAGES NOT TESTED: no Chromium is installed")


@pytest.fixture(scope="module")
def compressed() -> Compressed:
    """The network of the demonstration, a third as wide, tied more and more over three epochs."""
    torch.manual_seed(0)
    options = TrainOptions(epochs=3, batch_size=64, lr=0.05, amp="no", channels_last=False, features="none")
    return pdc_fx.compress(
        DigitNet(16),
        torch.zeros(INPUT),
        open_data("digits"),
        flops_reduction=0.5,
        mode="pdc",
        options=options,
        source={"model": "digits <small>", "command": "pdc-fx compress ..."},
    )


@pytest.fixture(scope="module")
def directory(compressed: Compressed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(compressed, tmp_path_factory.mktemp("page") / "out")


@pytest.fixture
def at(browser: Any, directory: Path) -> Iterator[Opened]:
    """The page, which must not have complained or asked for anything by the end of the test."""
    with opened(browser, directory / REPORT) as found:
        yield found
        assert found.messages == []
        assert found.requests == [(directory / REPORT).as_uri()]


def plan_of(directory: Path) -> ClusterPlan:
    return Recipe.read(directory).plan


def test_it_begins_with_what_was_measured(at: Opened, directory: Path) -> None:
    certificate = json.loads((directory / CERTIFICATE).read_text())
    accuracy, lead = certificate["accuracy"], at.page.text_content(".lead")
    gone = 1 - certificate["macs_after"] / certificate["macs_before"]
    for part in (f"{gone:.1%} of the multiply-accumulates", f"{accuracy['teacher']:.2%}", f"{accuracy['compact']:.2%}"):
        assert part in lead
    assert "Tied and compact network agree" in lead
    assert "Compact network and ONNX file agree" in lead
    assert at.page.text_content("h1") == "digits <small>"
    assert at.page.is_visible(".badge.good")
    assert not at.page.is_visible("text=compact_vs_onnx.tolerance")
    at.page.click("text=Every entry of the certificate")
    assert at.page.is_visible("text=compact_vs_onnx.tolerance")


def test_the_network_shows_kept_widths(at: Opened, directory: Path) -> None:
    page, plan = at.page, plan_of(directory)
    inner = next(i for i, group in enumerate(plan.groups.groups) if group.name == "block1.0")
    page.fill("#find", "block1.0")
    page.click("#view .n.hit")
    change = f"16 → {plan.widths[inner]}"
    assert change in page.text_content("#details")
    assert page.text_content("#view .n.chosen .right") == change.replace(" ", "")
    words = page.eval_on_selector_all("#view .n.on", "all => all.map(n => n.getAttribute('aria-label'))")
    assert len(words) == 4  # convolution, norm, relu, and the next convolution, which reads them
    assert f"16 channels of group {inner} that keeps {plan.widths[inner]}" in words[0]
    page.keyboard.press("Escape")
    assert lit(page) == set()


def test_groups_and_layers_before_and_after(at: Opened, directory: Path) -> None:
    page, plan = at.page, plan_of(directory)
    for index, group in enumerate(plan.groups.groups):
        row = page.text_content(f"#groups tr[data-group='{index}']")
        assert group.name in row
        assert f"{group.channels} → {plan.widths[index]}" in row
    removed = page.eval_on_selector_all("#layers tbody tr", "all => all.map(row => Number(row.cells[2].dataset.v))")
    assert sum(removed) == plan.macs_before - plan.macs_after
    page.click("#layers thead th:nth-child(3) button")
    order = page.eval_on_selector_all("#layers tbody tr", "all => all.map(row => Number(row.cells[2].dataset.v))")
    assert order == sorted(removed, reverse=True)
    page.fill("[data-filter=layers]", "block2")
    assert page.locator("#layers tbody tr:not([hidden])").count() == 2


def test_the_training_is_drawn_and_can_be_read(at: Opened, directory: Path) -> None:
    page = at.page
    titles = page.eval_on_selector_all("figcaption", "all => all.map(one => one.firstChild.textContent)")
    assert titles == ["Training loss", "Accuracy", "Tie residual", "Learning rate", "MACs by the plan"]
    assert page.locator("figure svg polyline").count() == 6
    page.click("text=The values as a table")
    rows = page.eval_on_selector_all(
        "section[aria-labelledby=h-training] tbody tr", "all => all.map(row => [...row.cells].map(c => c.textContent))"
    )
    records = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    records = [record for record in records if record["kind"] == "epoch"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[1] for row in rows] == [f"{record['loss']:.4g}" for record in records]


def test_filters_are_compared_by_pointer_and_keyboard(at: Opened, compressed: Compressed, directory: Path) -> None:
    page, plan = at.page, plan_of(directory)
    assert compressed.original is not None
    names = page.eval_on_selector_all("#which option", "all => all.map(one => one.textContent)")
    merged = [i for i, group in enumerate(plan.groups.groups) if plan.widths[i] < group.channels]
    assert names == [plan.groups.groups[i].name for i in merged]
    for number, index in enumerate(merged):
        page.select_option("#which", index=number)
        found = similarity(plan, index, compressed.original.state_dict())
        inside, _ = found.means()
        assert f"{inside:.2f}".replace("-", "−") in page.text_content("#means")
        page.locator("#heat").scroll_into_view_if_needed()
        box = page.locator("#heat").bounding_box()
        side = box["width"] / len(found.order)
        page.mouse.move(box["x"] + 2.5 * side, box["y"] + 4.5 * side)
        assert page.text_content("#pair").startswith(f"channels {found.order[4]} and {found.order[2]}: ")
        shown = page.text_content("#pair").split(": ")[1].split(",")[0].replace("−", "-")
        assert float(shown) == pytest.approx(found.cosines[4, 2], abs=0.5 / 127 + 0.005)
        page.focus("#heat")
        page.keyboard.press("ArrowDown")
        assert page.text_content("#pair").startswith(f"channels {found.order[5]} and {found.order[2]}: ")
        page.click("#clusters button")
        assert page.text_content("#pair").startswith(f"{found.sizes[0]} channels merged into one")
    pixel = "[...document.getElementById('heat').getContext('2d').getImageData(30, 20, 1, 1).data]"
    red, _, blue, alpha = page.evaluate(pixel)  # of the diagonal, where a filter meets itself
    assert alpha > 250
    assert blue > red


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_the_scheme(browser: Any, directory: Path, width: int, scheme: str) -> None:
    with opened(browser, directory / REPORT, width=width, scheme=scheme) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        assert (lightness(found.page) < 40) == (scheme == "dark")
        small = found.page.eval_on_selector_all(
            "main :is(p, td, th, dd, dt, button, small)",
            "all => Math.min(...all.map(e => parseFloat(getComputedStyle(e).fontSize)))",
        )
        assert small >= 11
        clipped = found.page.eval_on_selector_all(
            ".card:not(.scroll):not(.network)", "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
        )
        assert clipped == 0


def test_without_the_original_there_is_no_comparison_of_filters(browser: Any, tmp_path: Path) -> None:
    graph = inspect(DigitNet(8), torch.zeros(INPUT))
    page = tmp_path / "report.html"
    html = render_report(
        random_halves(graph.groups, 0), graph, title="x", accuracy={}, metrics=[], certificate={}, command=""
    )
    page.write_text(html, encoding="utf-8")
    with opened(browser, page) as found:
        assert found.page.locator("#heat, figure").count() == 0
        assert found.page.is_visible(".badge.open")
        found.page.click("[data-select='0']")
        assert lit(found.page)
        assert found.messages == []


def test_no_name_becomes_markup(browser: Any, tmp_path: Path) -> None:
    model = Odd()
    graph = inspect(model, torch.zeros(1, 3, 4, 4))
    title = "<img src=x onerror=document.title='taken'>"
    page = tmp_path / "odd.html"
    html = render_report(
        random_halves(graph.groups, 0),
        graph,
        title=title,
        accuracy={title: 0.5},
        metrics=[],
        certificate={title: title, "tied_vs_compact": {"passed": False, "first_difference": title}},
        command="pdc-fx '</script><script>'",
        original=model.state_dict(),
    )
    page.write_text(html, encoding="utf-8")
    with opened(browser, page) as found:
        assert found.page.title() == f"{title} · pdc-fx compression report"
        for number, name in enumerate(SHOWN[:3]):
            found.page.click(f"[data-select='{number}']")
            assert name in found.page.text_content("#details h3")
            found.page.select_option("#which", index=number)
            assert name in found.page.get_attribute("#heat", "aria-label")
        assert found.page.locator("script").count() == 2
        assert found.page.locator("img").count() == 0
        assert found.messages == []
        assert found.requests == [page.as_uri()]
