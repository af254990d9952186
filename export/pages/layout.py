"""Where the operators of a model stand on a page: layers by depth, wrapped into columns as a newspaper wraps its lines.

1. The *row* of a node is the length of the longest path to it. A network of a thousand rows would be a thread, so the rows are cut
   into columns of about the same height; a cut is placed where few edges cross it, and between blocks.
2. The *lane* of a node is that of the input its path comes from, where that is free; the branch with most ahead of it goes
   straight on, others move to the next free lane, which they keep until they join.
3. An edge to the next row, or along a lane of its own, runs between the nodes. Any other edge is a *skip*: it leaves to the right,
   passes beside everything on its way, and comes back. Skips from one node share a track.
4. Modules of a few operators are drawn as *blocks*, frames with a title.

All of this is a few passes over nodes and edges; nothing is searched for iteratively, so a graph of thousands of nodes takes
milliseconds and the same graph always gives the same picture. Lengths are in pixels at zoom 1; y grows downwards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

NODE_WIDTH, NODE_HEIGHT = 138.0, 21.0
ROW = 25.0
LANE = NODE_WIDTH + 12.0
TITLE = 21.0
"""Room above the first row of a block."""

_MARGIN = 14.0
_GAP = 14.0
"""Room between the nodes of a column and its skips, and between these and the next column."""
_TRACK, _TRACKS = 7.0, 70.0
"""Distance of neighbouring skips, and the room that all of them have at most."""

_BLOCK = 16
"""A module of at most so many operators, inside one of more, is a block."""


@dataclass(frozen=True)
class Block:
    """A frame around operators of one module."""

    module: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Positions of the nodes' upper left corners, edges as SVG paths, blocks, and the size of all.

    ``skips`` has one entry per edge: whether it passes beside other nodes.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    paths: tuple[str, ...]
    skips: tuple[bool, ...]
    blocks: tuple[Block, ...]
    width: float
    height: float


def layout(modules: Sequence[str], edges: Sequence[tuple[int, int]], *, aspect: float = 1.3) -> Layout:
    """Place nodes ``0 ... len(modules) - 1``, every edge of which leads from a smaller to a larger number.

    Args:
        modules: the module of each node; an empty text for inputs and outputs.
        edges: pairs of nodes.
        aspect: wanted width over height; met as well as whole columns allow.

    >>> two = layout(["a", "b", "b"], [(0, 1), (1, 2), (0, 2)])
    >>> two.x[0] == two.x[1] == two.x[2], two.skips
    (True, (False, False, True))
    """
    rows = _rows(len(modules), edges)
    lanes = _lanes(rows, edges)
    blocks = _blocks(modules)
    starts = {min(rows[n] for n in nodes) for nodes in blocks.values()}
    heights = [ROW + TITLE * (row in starts) for row in range(max(rows, default=0) + 1)]
    inside = _inside(rows, blocks)
    crossing = _crossing(rows, edges)
    best: tuple[float, Layout] | None = None
    total = sum(heights)
    for columns in range(1, 41):
        cuts = _cuts(heights, crossing, inside, columns)
        found = _place(_grid(rows, lanes, edges, cuts), edges, blocks, starts)
        ratio = found.width / max(found.height, 1.0)
        badness = max(ratio / aspect, aspect / ratio)
        if best is None or badness < best[0]:
            best = (badness, found)
        if ratio > aspect or total / columns < 12 * ROW:
            break
    assert best is not None
    return best[1]


def _rows(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest paths; what does not come from the first node (a table of positions, say) stands just above where it goes in."""
    rows, fed = [0] * count, [node == 0 for node in range(count)]
    after: dict[int, list[int]] = defaultdict(list)
    for start, stop in sorted(edges, key=lambda edge: edge[1]):
        rows[stop] = max(rows[stop], rows[start] + 1)
        fed[stop] |= fed[start]
        after[start].append(stop)
    for node in reversed(range(count)):
        if not fed[node] and after[node]:
            rows[node] = min(rows[stop] for stop in after[node]) - 1
        elif not fed[node] and node + 1 < count:  # goes nowhere: beside what runs next
            rows[node] = max(rows[node], rows[node + 1])
    return rows


def _lanes(rows: list[int], edges: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for each node, so that no two nodes of a row share one and no branch runs through another one's node."""
    before: dict[int, list[int]] = defaultdict(list)
    after: dict[int, list[int]] = defaultdict(list)
    for start, stop in edges:
        before[stop].append(start)
        after[start].append(stop)
    ahead = [0] * len(rows)  # rows on the longest path from here
    for node in sorted(range(len(rows)), key=lambda n: -rows[n]):
        ahead[node] = max((ahead[n] + 1 for n in after[node]), default=0)
    lanes = [-1] * len(rows)
    held: dict[int, int] = {}  # lane -> the node whose branch runs in it
    by_row: dict[int, list[int]] = defaultdict(list)
    for node, row in enumerate(rows):
        by_row[row].append(node)
    for row in sorted(by_row):
        held = {lane: n for lane, n in held.items() if max((rows[s] for s in after[n]), default=-1) >= row}
        taken: set[int] = set()
        for node in sorted(by_row[row], key=lambda n: (-ahead[n], n)):
            own = sorted((n for n in before[node] if rows[n] == row - 1), key=lambda n: lanes[n])
            lane = next((lanes[n] for n in own if held.get(lanes[n]) == n and lanes[n] not in taken), None)
            if lane is None:
                lane = next(i for i in range(len(rows)) if i not in taken and i not in held)
            lanes[node] = lane
            taken.add(lane)
            held[lane] = node
    return lanes


def _blocks(modules: Sequence[str]) -> dict[str, list[int]]:
    """The largest modules of 2 to ``_BLOCK`` operators -> their nodes."""
    count: Counter[str] = Counter()
    paths = []
    for module in modules:
        parts = module.split(".") if module else []
        path = [".".join(parts[: i + 1]) for i in range(len(parts))]
        paths.append(path)
        count.update(path)
    blocks: dict[str, list[int]] = defaultdict(list)
    for node, path in enumerate(paths):
        block = next((name for name in path if count[name] <= _BLOCK), None)
        if block is not None and count[block] > 1:
            blocks[block].append(node)
    return dict(blocks)


def _inside(rows: list[int], blocks: dict[str, list[int]]) -> list[bool]:
    """Row -> whether a cut before it would cut a block."""
    inside = [False] * (max(rows, default=0) + 2)
    for nodes in blocks.values():
        for row in range(min(rows[n] for n in nodes) + 1, max(rows[n] for n in nodes) + 1):
            inside[row] = True
    return inside


def _crossing(rows: list[int], edges: Sequence[tuple[int, int]]) -> list[int]:
    """Row -> how many edges lead from the rows before it to it or beyond."""
    change = [0] * (max(rows, default=0) + 3)
    for start, stop in edges:
        change[rows[start] + 1] += 1
        change[rows[stop] + 1] -= 1
    total, found = 0, []
    for step in change:
        total += step
        found.append(total)
    return found


def _cuts(heights: list[float], crossing: list[int], inside: list[bool], columns: int) -> list[int]:
    """The rows that begin the second, third ... column.

    There is a choice for each as long as there are at most 40 columns, and one column less would be of at least 12 plain rows: then no
    column comes out at less than 89 pixels, of which the choices span seven tenths, more than the highest row.
    """
    tops = [0.0]
    for height in heights:
        tops.append(tops[-1] + height)
    cuts: list[int] = []
    first = 0
    for left in range(columns, 1, -1):
        height = (tops[-1] - tops[first]) / left
        choices = [r for r in range(first + 1, len(heights)) if 0.65 <= (tops[r] - tops[first]) / height <= 1.35]
        first = min(
            choices,
            key=lambda r: abs((tops[r] - tops[first]) / height - 1) + 0.08 * min(crossing[r] - 1, 8) + 0.25 * inside[r],
        )
        cuts.append(first)
    return cuts


@dataclass(frozen=True)
class _Grid:
    """Rows and lanes, cut into columns.

    Attributes:
        column: row -> its column.
        bounds: the first row of each column, and one past the last.
        right: row -> the last lane that is taken in it, by a node or by a branch on its way to where it joins.
        skips: edge -> whether it passes beside other nodes.
        tracks: node -> the track of the skips that leave it, counted from the left.
    """

    rows: Sequence[int]
    lanes: Sequence[int]
    column: Sequence[int]
    bounds: Sequence[int]
    right: Sequence[int]
    skips: Sequence[bool]
    tracks: Mapping[int, int]


def _grid(rows: list[int], lanes: list[int], edges: Sequence[tuple[int, int]], cuts: list[int]) -> _Grid:
    bounds = [0, *cuts, max(rows, default=0) + 1]
    column = [c for c, (first, last) in enumerate(pairwise(bounds)) for _ in range(first, last)]
    right = [-1] * len(column)
    for row, lane in zip(rows, lanes, strict=True):
        right[row] = max(right[row], lane)
    continued = {(start, lanes[stop]) for start, stop in edges if rows[stop] == rows[start] + 1}
    skips = []
    for start, stop in edges:
        near = rows[stop] == rows[start] + 1
        own_lane = (start, lanes[start]) not in continued  # nobody goes on in it, so it is free down to the join
        same = column[rows[start]] == column[rows[stop]]
        skips.append(not (same and (near or own_lane)))
        if same and not near and own_lane:
            for row in range(rows[start], rows[stop]):
                right[row] = max(right[row], lanes[start])
    reach: dict[int, int] = {}
    for (start, stop), skip in zip(edges, skips, strict=True):
        if skip:
            reach[start] = max(reach.get(start, 0), rows[stop])
    return _Grid(rows, lanes, column, bounds, right, skips, _tracks(rows, column, bounds, reach))


def _tracks(rows: list[int], column: list[int], bounds: list[int], reach: dict[int, int]) -> dict[int, int]:
    """A track for each node with skips, which go as far as row ``reach``: short ones are nearest, and none lies on another."""
    spans = {}
    for node, stop in reach.items():
        at = column[rows[node]]
        # one that leaves the column runs up or down the gutter to anywhere
        spans[node] = (rows[node], stop) if column[stop] == at else (bounds[at], bounds[at + 1])
    tracks: dict[int, int] = {}
    taken: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for node, (first, last) in sorted(spans.items(), key=lambda item: (item[1][1] - item[1][0], item[0])):
        at, level = column[rows[node]], 0
        while any(a < last and first < b for a, b in taken[at, level]):
            level += 1
        taken[at, level].append((first, last))
        tracks[node] = level
    return tracks


def _place(grid: _Grid, edges: Sequence[tuple[int, int]], blocks: dict[str, list[int]], starts: set[int]) -> Layout:
    rows, lanes, column = grid.rows, grid.lanes, grid.column
    top = [0.0] * len(column)
    left, gutter, distance = [], [], []
    x = _MARGIN
    for index, (first, last) in enumerate(pairwise(grid.bounds)):
        y = _MARGIN
        for row in range(first, last):
            y += TITLE * (row in starts)
            top[row] = y
            y += ROW
        levels = max((t for n, t in grid.tracks.items() if column[rows[n]] == index), default=-1) + 1
        left.append(x)
        gutter.append(x + max(grid.right[first:last]) * LANE + NODE_WIDTH + _GAP)
        distance.append(min(_TRACK, _TRACKS / max(levels, 1)))
        x = gutter[-1] + levels * distance[-1] + _GAP
    xs = tuple(left[column[row]] + lane * LANE for row, lane in zip(rows, lanes, strict=True))
    ys = tuple(top[row] for row in rows)
    beside = _beside_lanes(grid, edges)
    taken = set(zip(rows, lanes, strict=True))
    paths = []
    for (start, stop), skip in zip(edges, grid.skips, strict=True):
        a, b, at, to = (xs[start], ys[start]), (xs[stop], ys[stop]), column[rows[start]], column[rows[stop]]
        if skip:
            base = gutter[at] if to > at else left[at] + beside[start] * LANE + NODE_WIDTH + _GAP
            track = base + grid.tracks[start] * distance[at]
            over = left[to] - 10 if to > at + 1 else None
            paths.append(_beside(a, b, track) if to == at else _across(a, b, track, over))
        else:
            leaves = lanes[stop] > lanes[start] and rows[stop] == rows[start] + 1
            turn = (rows[start], lanes[stop]) if leaves else (rows[stop], lanes[start])
            paths.append(_between(a, b) if lanes[stop] != lanes[start] and turn in taken else _down(a, b))
    frames = tuple(_frames(blocks, rows, column, xs, ys))
    return Layout(xs, ys, tuple(paths), tuple(grid.skips), frames, x + _MARGIN - _GAP, max(top) + ROW + _MARGIN)


def _beside_lanes(grid: _Grid, edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Node -> the last lane that is taken on the way of its skips inside its column."""
    reach: dict[int, int] = {}
    for (start, stop), skip in zip(edges, grid.skips, strict=True):
        if skip and grid.column[grid.rows[start]] == grid.column[grid.rows[stop]]:
            reach[start] = max(reach.get(start, 0), grid.rows[stop])
    return {node: max(grid.right[grid.rows[node] : stop + 1]) for node, stop in reach.items()}


def _down(a: tuple[float, float], b: tuple[float, float]) -> str:
    """Straight on in a lane; a branch leaves to the side in the row before its first node, and comes in from the side at its end."""
    bend = 9.0
    x, to = a[0] + NODE_WIDTH / 2, b[0] + NODE_WIDTH / 2
    if x == to:
        return f"M{x:g} {a[1] + NODE_HEIGHT:g}V{b[1]:g}"
    y, end = a[1] + NODE_HEIGHT / 2, b[1] + NODE_HEIGHT / 2
    if to > x and b[1] - a[1] <= ROW + TITLE:
        return f"M{a[0] + NODE_WIDTH:g} {y:g}H{to - bend:g}Q{to:g} {y:g} {to:g} {y + bend:g}V{b[1]:g}"
    turn, side = (bend, b[0]) if to > x else (-bend, b[0] + NODE_WIDTH)
    return f"M{x:g} {a[1] + NODE_HEIGHT:g}V{end - bend:g}Q{x:g} {end:g} {x + turn:g} {end:g}H{side:g}"


def _between(a: tuple[float, float], b: tuple[float, float]) -> str:
    """To the next row through the gap, where a node stands beside the first one."""
    x, y, to = a[0] + NODE_WIDTH / 2, a[1] + NODE_HEIGHT, b[0] + NODE_WIDTH / 2
    return f"M{x:g} {y:g}C{x:g} {b[1]:g} {to:g} {y:g} {to:g} {b[1]:g}"


def _beside(a: tuple[float, float], b: tuple[float, float], track: float) -> str:
    """Out to the right, down along ``track``, and back."""
    x, y, to, end = a[0] + NODE_WIDTH, a[1] + NODE_HEIGHT / 2, b[0] + NODE_WIDTH, b[1] + NODE_HEIGHT / 2
    bend = min(14.0, (end - y) / 2)
    return (
        f"M{x:g} {y:g}H{max(x, track - bend):g}Q{track:g} {y:g} {track:g} {y + bend:g}"
        f"V{end - bend:g}Q{track:g} {end:g} {max(to, track - bend):g} {end:g}H{to:g}"
    )


def _across(a: tuple[float, float], b: tuple[float, float], track: float, over: float | None) -> str:
    """To a later column and in from the left: along the gutter, or over the top and down at ``over`` if columns lie between."""
    x, y, end, bend = a[0] + NODE_WIDTH, a[1] + NODE_HEIGHT / 2, b[1] + NODE_HEIGHT / 2, 9.0
    if over is not None:
        top = 5.0
        return (
            f"M{x:g} {y:g}H{max(x, track - bend):g}Q{track:g} {y:g} {track:g} {y - bend:g}V{top + bend:g}"
            f"Q{track:g} {top:g} {track + bend:g} {top:g}H{over - bend:g}Q{over:g} {top:g} {over:g} {top + bend:g}"
            f"V{end - bend:g}Q{over:g} {end:g} {over + bend:g} {end:g}H{b[0]:g}"
        )
    if abs(end - y) < 2 * bend:
        return f"M{x:g} {y:g}C{track:g} {y:g} {track:g} {end:g} {b[0]:g} {end:g}"
    turn = bend if end > y else -bend
    return (
        f"M{x:g} {y:g}H{max(x, track - bend):g}Q{track:g} {y:g} {track:g} {y + turn:g}V{end - turn:g}"
        f"Q{track:g} {end:g} {min(b[0], track + bend):g} {end:g}H{b[0]:g}"
    )


def _frames(
    blocks: dict[str, list[int]], rows: Sequence[int], column: Sequence[int], xs: Sequence[float], ys: Sequence[float]
) -> Iterator[Block]:
    """One frame per block and column that holds a part of it; none around operators of others."""
    by_column: dict[int, list[int]] = defaultdict(list)
    for node, row in enumerate(rows):
        by_column[column[row]].append(node)
    for name, nodes in blocks.items():
        own = set(nodes)
        for index in sorted({column[rows[n]] for n in nodes}):
            here = [n for n in nodes if column[rows[n]] == index]
            left, right = min(xs[n] for n in here), max(xs[n] for n in here)
            top, bottom = min(ys[n] for n in here), max(ys[n] for n in here)
            if not any(left <= xs[n] <= right and top <= ys[n] <= bottom and n not in own for n in by_column[index]):
                title = TITLE - 3
                yield Block(
                    name, left - 5, top - title, right - left + NODE_WIDTH + 10, bottom - top + NODE_HEIGHT + 4 + title
                )
