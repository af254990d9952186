"""The dependency report in a real browser: found, clicked, sorted, filtered, read in the dark, and no name trusted."""

from __future__ import annotations

import re
import socket
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from browser import Opened, installed_browser, lightness, lit, opened
from odd_names import SHOWN, Odd
from torch import nn

from pdc_fx.export.inspection import render_inspection
from pdc_fx.export.pages.model_graph import ModelGraph
from pdc_fx.pipeline import inspect

pytestmark = pytest.mark.skipif(installed_browser() is None, reason="PAGES NOT TESTED: no Chromium is installed")


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    return inspect(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64))


@pytest.fixture(scope="module")
def path(graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_inspection(graph, title="resnet18"), encoding="utf-8")
    return path


@pytest.fixture
def at(browser: Any, path: Path) -> Iterator[Opened]:
    """The page, which must not have complained or asked for anything by the end of the test."""
    with opened(browser, path) as found:
        yield found
        assert found.messages == []
        assert found.requests == [path.as_uri()]


def expected(graph: ModelGraph, group: int) -> set[int]:
    """The nodes that hold channels of a group or read a tensor that is a member of it."""
    tensors = {member.tensor for member in graph.groups.groups[group].members}
    return {
        index for index, node in enumerate(graph.nodes) if group in node.groups or tensors.intersection(node.tensors)
    }


def group_made_by(graph: ModelGraph, tensor: str) -> int:
    return next(i for i, group in enumerate(graph.groups.groups) if any(m.tensor == tensor for m in group.producers))


def test_what_a_page_asks_for_is_noted_and_refused(browser: Any, tmp_path: Path) -> None:
    """Else the other tests would show nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        wanted = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        page = tmp_path / "asks.html"
        page.write_text(f"<img src='{wanted}'><script>console.log('said')</script>")
        with opened(browser, page) as found:
            found.page.wait_for_load_state("networkidle")
            assert found.requests == [page.as_uri(), wanted]
            assert "said" in found.messages
            assert any("ERR_" in message for message in found.messages)
        with pytest.raises(TimeoutError):
            server.accept()


def test_search_click_and_the_right_members_light_up(at: Opened, graph: ModelGraph) -> None:
    page = at.page
    assert lit(page) == set()
    page.fill("#find", "layer2.0.downsample.0")
    assert page.text_content("#found") == "1 found"
    page.click("#view .n.hit")
    stream = group_made_by(graph, "layer2.0.downsample.0.weight")
    assert lit(page) == expected(graph, stream)
    assert len(lit(page)) < len(graph.nodes) / 2
    details = page.text_content("#details")
    for member in graph.groups.groups[stream].members:
        assert member.tensor in details
    for role in ("Made by (3)", "Per channel (12)", "Read by (3)", "Coupled here"):
        assert role in details
    page.keyboard.press("Escape")
    assert lit(page) == set()
    assert page.is_visible("#about")


def test_search_goes_from_hit_to_hit(at: Opened, graph: ModelGraph) -> None:
    page = at.page
    page.fill("#find", "conv1 layer1")
    wanted = [i for i, node in enumerate(graph.nodes) if node.module in ("layer1.0.conv1", "layer1.1.conv1")]
    for number, node in enumerate([*wanted, wanted[0]]):
        page.press("#find", "Enter")
        assert page.text_content("#found") == f"{number % 2 + 1} of 2"
        chosen = page.eval_on_selector_all("#view .n", "all => all.findIndex(n => n.classList.contains('chosen'))")
        assert chosen == node
    page.fill("#find", "no such layer")
    assert page.text_content("#found") == "0 found"
    assert page.is_disabled("#next")


def test_a_group_of_the_table_lights_up(at: Opened, graph: ModelGraph) -> None:
    group = group_made_by(graph, "layer3.1.conv1.weight")
    at.page.click(f"[data-select='{group}']")
    assert lit(at.page) == expected(graph, group)
    roles = at.page.eval_on_selector_all("#view .n.makes", "all => all.map(n => n.getAttribute('aria-label'))")
    assert len(roles) == 1
    assert "layer3.1.conv1" in roles[0]


def test_frozen_parts_are_hatched_and_say_why(at: Opened, graph: ModelGraph) -> None:
    hatched = at.page.eval_on_selector_all("#view .n.frozen", "all => all.map(n => n.getAttribute('aria-label'))")
    assert hatched == ["linear fc, 1,000 channels frozen"]
    at.page.click("[data-reasons]")
    assert lit(at.page) == {next(i for i, node in enumerate(graph.nodes) if node.module == "fc")}
    assert "is an output of the model" in at.page.text_content("#details")


def test_tables_filter_and_sort(at: Opened, graph: ModelGraph) -> None:
    page = at.page
    page.fill("[data-filter=groups]", "layer4.1.conv1.weight")
    shown = page.eval_on_selector_all(
        "#groups tbody tr:not([hidden])", "all => all.map(row => Number(row.dataset.group))"
    )
    tensor = "layer4.1.conv1.weight"
    wanted = [i for i, g in enumerate(graph.groups.groups) if any(m.tensor == tensor for m in g.members)]
    assert shown == wanted
    assert len(wanted) == 2
    page.fill("[data-filter=groups]", "")
    for column, key in ((1, lambda g: g.channels), (2, lambda g: len(g.members))):
        for descending in (True, False):
            page.click(f"#groups thead th:nth-child({column + 1}) button")
            order = page.eval_on_selector_all("#groups tbody tr", "all => all.map(row => Number(row.dataset.group))")
            values = [key(graph.groups.groups[i]) for i in order]
            assert values == sorted(values, reverse=descending)
    page.fill("[data-filter=layers]", "downsample")
    assert page.locator("#layers tbody tr:not([hidden])").count() == 3


def test_dark_and_light(browser: Any, path: Path) -> None:
    with opened(browser, path, scheme="dark") as found:
        assert lightness(found.page) < 40
        found.page.click("#theme")
        assert lightness(found.page) > 220
    with opened(browser, path, scheme="light") as found:
        assert lightness(found.page) > 220
        found.page.emulate_media(color_scheme="dark")
        assert lightness(found.page) < 40


def test_keyboard_alone(at: Opened, graph: ModelGraph) -> None:
    page = at.page
    page.focus("#fit")
    page.keyboard.press("Tab")
    focused = "[...document.querySelectorAll('#view .n')].indexOf(document.activeElement)"
    assert page.evaluate(focused) == 0
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert graph.nodes[page.evaluate(focused)].module == "bn1"
    assert page.evaluate("getComputedStyle(document.activeElement.querySelector('.b')).strokeWidth") == "3px"
    page.keyboard.press("Enter")
    assert lit(page) == expected(graph, group_made_by(graph, "conv1.weight"))
    assert "batch_norm bn1" in page.text_content("#said")
    page.keyboard.press("Escape")
    assert lit(page) == set()
    page.keyboard.press("Tab")  # one stop only, however many operators there are
    assert page.evaluate(focused) == -1


def zoom(page: Any) -> float:
    page.evaluate("() => new Promise(requestAnimationFrame)")
    return float(re.search(r"scale\(([\d.]+)\)", page.get_attribute("#view", "transform")).group(1))


def test_zoom_and_pan(at: Opened) -> None:
    page = at.page
    whole = zoom(page)
    page.click("#in")
    assert zoom(page) == pytest.approx(1.3 * whole)
    page.click("#fit")
    assert zoom(page) == pytest.approx(whole)
    box = page.locator("#graph").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.wait_for_function(f"!document.getElementById('view').getAttribute('transform').includes('scale({whole}')")
    assert zoom(page) > whole
    before = page.get_attribute("#view", "transform")
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 130, steps=3)
    page.mouse.up()
    zoom(page)
    assert page.get_attribute("#view", "transform") != before
    assert lit(page) == set()


TURN = """() => {
  const graph = document.getElementById("graph");
  const { left, top } = graph.getBoundingClientRect();
  const place = { clientX: left + 200, clientY: top + 60 };
  for (let step = 0; step < 30; step++) {
    graph.dispatchEvent(new WheelEvent("wheel", { deltaY: -200, ctrlKey: true, cancelable: true, bubbles: true, ...place }));
  }
}"""
DISPLAYED = "[...document.querySelectorAll('#view .n text')].map(text => getComputedStyle(text).display)"


def test_texts_of_a_large_graph_are_back_when_the_wheel_rests(browser: Any, tmp_path: Path) -> None:
    layers = [layer for _ in range(260) for layer in (torch.nn.Conv2d(2, 2, 1), torch.nn.ReLU())]
    graph = inspect(torch.nn.Sequential(*layers), torch.zeros(1, 2, 2, 2))
    page = tmp_path / "large.html"
    page.write_text(render_inspection(graph, title="large"), encoding="utf-8")
    with opened(browser, page) as found:
        clock = found.page.clock  # by which the page's time passes only when it is told to
        clock.install(time=datetime(2026, 1, 1))
        found.page.reload()
        clock.pause_at(datetime(2026, 1, 2))
        found.page.evaluate(TURN)
        clock.run_for(100)
        transform = found.page.get_attribute("#view", "transform")
        assert float(re.search(r"scale\(([\d.]+)\)", transform).group(1)) > 0.45
        assert set(found.page.evaluate(DISPLAYED)) == {"none"}
        clock.run_for(500)
        assert "none" not in found.page.evaluate(DISPLAYED)
        assert found.messages == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, path: Path, width: int) -> None:
    with opened(browser, path, width=width) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        small = found.page.eval_on_selector_all(
            "main :is(p, td, th, dd, dt, button)",
            "all => Math.min(...all.map(e => parseFloat(getComputedStyle(e).fontSize)))",
        )
        assert small >= 11


def test_titles_stay_in_their_blocks(browser: Any, tmp_path: Path) -> None:
    """A long name loses its first parts, and keeps them where the mouse rests."""
    layers = {f"denselayer{i}": nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()) for i in range(10)}
    net = nn.ModuleDict({"denseblock1": nn.Sequential(OrderedDict(layers))})
    page = tmp_path / "long.html"
    graph = inspect(nn.Sequential(OrderedDict(features=nn.Sequential(OrderedDict(net)))), torch.zeros(1, 2, 4, 4))
    page.write_text(render_inspection(graph, title="long"), encoding="utf-8")
    with opened(browser, page) as found:
        titles, blocks = found.page.locator("#view .title"), found.page.locator("#view .block")
        assert titles.count() == blocks.count() == 10
        for number in range(10):
            title, block = titles.nth(number).bounding_box(), blocks.nth(number).bounding_box()
            assert title["x"] + title["width"] <= block["x"] + block["width"]
            assert titles.nth(number).text_content() == f"…denselayer{number}"
            assert blocks.nth(number).text_content() == f"features.denseblock1.denselayer{number}"


def test_no_name_becomes_markup(browser: Any, tmp_path: Path) -> None:
    graph = inspect(Odd(), torch.zeros(1, 3, 4, 4))
    title = "<img src=x onerror=document.title='taken'>"
    page = tmp_path / "odd.html"
    page.write_text(render_inspection(graph, title=title, command="pdc-fx '</script><script>'"), encoding="utf-8")
    with opened(browser, page) as found:
        assert found.page.title() == f"{title} · pdc-fx dependency report"
        assert found.page.text_content("h1") == title
        names = found.page.eval_on_selector_all("#groups tbody th", "all => all.map(th => th.textContent)")
        assert names == list(SHOWN[:3])
        for number, name in enumerate(SHOWN[:3]):
            found.page.click(f"[data-select='{number}']")
            assert name in found.page.text_content("#details h3")
            assert f"{name}.weight" in found.page.text_content("#details")
        assert found.page.locator("script").count() == 2
        assert found.page.locator("img").count() == 0
        assert found.messages == []
        assert found.requests == [page.as_uri()]
