"""The layout of a graph: nothing lies on anything else, and large graphs are quick."""

from __future__ import annotations

import re
import time
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdc_fx.export.pages.layout import NODE_HEIGHT, NODE_WIDTH, Layout, layout

Edges = list[tuple[int, int]]


def chain(count: int) -> Edges:
    return [(i, i + 1) for i in range(count - 1)]


def residual(blocks: int) -> Edges:
    """Blocks of three operators and an addition, each with a shortcut around it."""
    edges = chain(4 * blocks + 1)
    return edges + [(4 * b, 4 * b + 4) for b in range(blocks)]


GRAPHS: dict[str, tuple[int, Edges]] = {
    "one": (1, []),
    "chain": (5, chain(5)),
    "residual": (41, residual(10)),
    "branches": (8, [(0, 1), (1, 2), (0, 3), (0, 4), (4, 5), (5, 6), (2, 7), (3, 7), (6, 7)]),
    "dense": (9, [(a, b) for a, b in combinations(range(9), 2)]),
    "apart": (6, [(0, 1), (2, 3), (4, 5)]),
}


def straight_lines(placed: Layout, edges: Edges) -> list[tuple[int, float, float, float]]:
    """Edge, x, and y from and to of every vertical line of an edge that does not pass beside."""
    found = []
    for number, (path, skip) in enumerate(zip(placed.paths, placed.skips, strict=True)):
        if not skip:
            x, y = map(float, re.match(r"M([-\d.e]+) ([-\d.e]+)", path).groups())
            for command, numbers in re.findall(r"([HVQ])([-\d.e ]+)", path):
                values = [float(v) for v in numbers.split()]
                if command == "V":
                    found.append((number, x, y, values[0]))
                    y = values[0]
                elif command == "H":
                    x = values[0]
                else:
                    x, y = values[2], values[3]
    return found


def require_clean(placed: Layout, edges: Edges) -> None:
    for a, b in combinations(range(len(placed.x)), 2):
        apart = abs(placed.x[a] - placed.x[b]) >= NODE_WIDTH or abs(placed.y[a] - placed.y[b]) >= NODE_HEIGHT
        assert apart, f"nodes {a} and {b} overlap"
    for number, x, start, stop in straight_lines(placed, edges):
        for node, (left, top) in enumerate(zip(placed.x, placed.y, strict=True)):
            if node not in edges[number] and left < x < left + NODE_WIDTH:
                assert max(start, stop) <= top or top + NODE_HEIGHT <= min(start, stop), f"edge {number} crosses {node}"
    assert all(0 <= x <= placed.width - NODE_WIDTH for x in placed.x)
    assert all(0 <= y <= placed.height - NODE_HEIGHT for y in placed.y)


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_overlaps(name: str) -> None:
    count, edges = GRAPHS[name]
    require_clean(layout(["m"] * count, edges), edges)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_nothing_overlaps_in_random_graphs(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, min(count, a + 9))]
    edges = sorted(data.draw(st.sets(st.sampled_from(pairs), max_size=80))) if pairs else []
    require_clean(layout(["m"] * count, edges), edges)


def test_a_shortcut_passes_beside_what_it_skips() -> None:
    edges = residual(1)
    placed = layout([""] * 5, edges)
    assert [edge for edge, skip in zip(edges, placed.skips, strict=True) if skip] == [(0, 4)]
    track = max(float(v) for v in re.findall(r"Q([\d.]+)", placed.paths[-1]))
    assert track > max(placed.x) + NODE_WIDTH


def test_what_comes_from_no_input_stands_where_it_goes_in() -> None:
    edges = [*chain(6), (6, 7), (7, 5)]  # 6 and 7 feed 5 only
    placed = layout([""] * 8, edges)
    assert placed.y[7] == placed.y[4]
    assert placed.y[6] == placed.y[3]


def test_a_branch_that_is_alone_in_its_lane_goes_straight_down_it() -> None:
    count, edges = GRAPHS["branches"]
    placed = layout([""] * count, edges)
    assert not any(placed.skips)
    assert len({placed.x[n] for n in (1, 3, 4)}) == 3


def residual_layers(blocks: int) -> tuple[list[str], list[tuple[int, int]]]:
    return [f"layer.{i // 4}.conv" for i in range(4 * blocks + 1)], residual(blocks)


def test_time_grows_with_the_square_of_the_size_at_most() -> None:
    def seconds(blocks: int) -> float:
        graph, start = residual_layers(blocks), time.process_time()
        layout(*graph)
        return time.process_time() - start

    assert min(seconds(200) for _ in range(3)) < 6 * min(seconds(100) for _ in range(3))  # the square: 4; the cube: 8


@pytest.mark.parametrize("blocks", [40, 400])
def test_long_graphs_are_wrapped_into_columns(blocks: int) -> None:
    placed = layout(*residual_layers(blocks))
    assert 0.7 < placed.width / placed.height / 1.3 < 1.5
    assert len({block.module for block in placed.blocks}) == blocks


def test_a_very_wide_page_has_forty_columns() -> None:
    placed = layout(["m"] * 600, chain(600), aspect=1e6)
    require_clean(placed, chain(600))
    assert len(set(placed.x)) == 40


@pytest.mark.parametrize(
    ("count", "stop", "form"),
    [
        (24, 12, r"M152 24\.5C166 24\.5 166 24\.5 194 24\.5"),  # straight to the same height in the next column
        (36, 24, r"M152 24\.5H157Q\S+ \S+ \S+ \S+V14Q\S+ 5 \S+ 5H348Q.*H367"),  # over the top of the one between
    ],
)
def test_how_an_edge_goes_to_another_column(count: int, stop: int, form: str) -> None:
    edges = sorted({*chain(count), (0, stop)})
    placed = layout(["m"] * count, edges)
    require_clean(placed, edges)
    assert placed.y[0] == placed.y[stop] > 5
    assert re.fullmatch(form, placed.paths[edges.index((0, stop))])


def test_blocks_are_modules_of_a_few_operators() -> None:
    modules = ["", *[f"stage.{i // 5}.conv{i % 5}" for i in range(20)], "head"]
    placed = layout(modules, chain(len(modules)))
    assert [block.module for block in placed.blocks] == ["stage.0", "stage.1", "stage.2", "stage.3"]


def test_a_block_holds_no_operator_of_another() -> None:
    modules = ["a", "b", "a", *["c"] * 20]  # `a` is called again after `b`
    placed = layout(modules, chain(len(modules)))
    assert "a" not in {block.module for block in placed.blocks}
