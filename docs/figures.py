"""The drawings of the documentation: SVG text from numbers that pdc-fx computed on tiny networks, or from measured results.

A drawing brings its own background and follows the reader's light or dark preference, so it is readable on any page. All are 480
units wide, so that their text can still be read on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import torch
from torch import Tensor, nn

import pdc_fx

WIDTH = 480
STYLE = """
.panel { fill: #fbfcfd; stroke: #d5dbe1; } .ink { fill: #1d2730; } .soft { fill: #5a6874; } .rule { stroke: #97a3ad; }
.a { fill: #bfe3dc; stroke: #1b7f70; } .b { fill: #f6d9b5; stroke: #a8630f; } .plain { fill: #eef1f4; stroke: #97a3ad; }
.fill-a { fill: #1b7f70; } .fill-b { fill: #c9a06a; } .fill-c { fill: #aab4bd; }
.high { fill: #1b7f70; } .low { fill: #b8641e; } .zero { fill: #ffffff; stroke: #d5dbe1; }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 14px; }
.number { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; text-anchor: middle; }
.title { font-weight: 600; font-size: 15px; } .middle { text-anchor: middle; } .end { text-anchor: end; } .small { font-size: 12.5px; }
@media (prefers-color-scheme: dark) {
  .panel { fill: #1d232b; stroke: #3b4651; } .ink { fill: #e6ebef; } .soft { fill: #a3b0bb; } .rule { stroke: #6b7883; }
  .a { fill: #17564c; stroke: #4fc3b0; } .b { fill: #6a4312; stroke: #e0a458; } .plain { fill: #2a323b; stroke: #6b7883; }
  .fill-a { fill: #4fc3b0; } .fill-b { fill: #a98048; } .fill-c { fill: #66727d; }
  .high { fill: #4fc3b0; } .low { fill: #e0873d; } .zero { fill: #12161b; stroke: #3b4651; }
}
"""


def text(x: float, y: float, words: object, kind: str = "ink") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(str(words))}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, *, opacity: float = 1) -> str:
    """A rectangle."""
    shade = "" if opacity == 1 else f' fill-opacity="{opacity:.2f}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"{shade}/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="rule" marker-end="url(#head)"/>'


def drawing(height: float, title: str, parts: Sequence[str]) -> str:
    """The whole file; ``title`` is what a screen reader says."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,1 L7,4 L0,7 z" class="soft"/></marker></defs>\n'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8" class="panel"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


# ------------------------------------------------------------------------------------------------------ channel addition
FILTERS = [[2.0, -1.0], [1.0, 1.0], [2.0, -1.0]]  # three filters of a 1 x 1 convolution of two channels; two are alike
BIASES = [1.0, 0.0, 1.0]
READER = [[1.0, 4.0, 2.0], [-2.0, 1.0, 3.0]]  # the convolution that reads them
INPUT = [2.0, 1.0]  # one pixel
KINDS = "aba"


def merged() -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """The tied network, what ``pdc_fx.rewrite`` makes of it, and the pixel."""
    tied = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False))
    pixel = torch.tensor(INPUT).view(1, 2, 1, 1)
    with torch.no_grad():
        tied[0].weight.copy_(torch.tensor(FILTERS).view(3, 2, 1, 1))  # type: ignore[operator,union-attr]
        tied[0].bias.copy_(torch.tensor(BIASES))  # type: ignore[operator,union-attr]
        tied[2].weight.copy_(torch.tensor(READER).view(2, 3, 1, 1))  # type: ignore[operator,union-attr]
    plan = pdc_fx.plan(tied, pdc_fx.analyze(tied, pixel), flops_reduction=1 / 3)
    compact = pdc_fx.rewrite(tied, plan, pixel)
    assert isinstance(compact, nn.Sequential)
    return tied, compact, pixel


def _strips(network: nn.Sequential, pixel: Tensor, kinds: str, sums: Sequence[str], top: float) -> Iterator[str]:
    """One row for each channel: its filter, the value it has, and the column of the reader that meets it."""
    first, reader = network[0], network[2]
    values = network[:2](pixel).flatten().tolist()
    for i, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        y = top + 58 * i
        cells = [*first.weight[i].flatten().tolist(), first.bias[i].item()]  # type: ignore[index,union-attr]
        for j, number in enumerate(cells):
            yield box(20 + 42 * j, y, 38, 32, kind if j < 2 else "plain")
            yield text(39 + 42 * j, y + 21, f"{number:g}", "number ink")
        yield arrow(148, y + 16, 190, y + 16)
        yield f'<circle cx="212" cy="{y + 16:g}" r="17" class="{kind}"/>'
        yield text(212, y + 21, f"{value:g}", "number ink")
        yield arrow(233, y + 16, 275, y + 16)
        for row, number in enumerate(reader.weight[:, i].flatten().tolist()):  # type: ignore[index,union-attr]
            yield box(282, y - 8 + 25 * row, 40, 23, kind)
            yield text(302, y + 9 + 25 * row, f"{number:g}", "number ink")
        for row, words in enumerate(sums[2 * i : 2 * i + 2]):
            yield text(330, y + 9 + 25 * row, words, "soft")


def channel_addition() -> str:
    """Two identical filters become one, and the two columns of the reader are summed; numbers from the real networks."""
    tied, compact, pixel = merged()
    with torch.no_grad():
        before, after = tied(pixel).flatten().tolist(), compact(pixel).flatten().tolist()
        columns = tied[2].weight.flatten(1)  # type: ignore[operator,union-attr]
        sums = [f"= {columns[r, 0]:g} + {columns[r, 2]:g}".replace("+ -", "− ") for r in range(2)]
        parts = [text(20, 28, "Tied: channels 1 and 3 have the same filter", "title ink")]
        parts += [text(20, 52, "filter", "small soft"), text(106, 52, "bias", "small soft")]
        parts += [text(212, 52, "value", "small soft middle"), text(282, 52, "column of the reader", "small soft")]
        parts += list(_strips(tied, pixel, KINDS, ["", "", "", "", "", ""], 70))
        parts += [
            text(20, 248, f"output: {before[0]:g} and {before[1]:g}", "ink"),
            text(460, 248, "3 channels", "soft end"),
        ]
        parts.append('<line x1="20" y1="266" x2="460" y2="266" class="rule"/>')
        parts.append(text(20, 294, "Compact: one of them stays, its columns are added", "title ink"))
        parts += list(_strips(compact, pixel, KINDS[:2], [*sums, "", ""], 322))
        parts += [
            text(20, 442, f"output: {after[0]:g} and {after[1]:g}", "ink"),
            text(460, 442, "2 channels", "soft end"),
        ]
    title = f"Channel addition: three channels and two have the same outputs, {after[0]:g} and {after[1]:g}"
    return drawing(462, title, parts)


# -------------------------------------------------------------------------------------------------- train, tie and merge
SHAPES = [  # six filters of 3 x 3: rough edges in two directions, and a spot
    [-9, 1, 8, -10, 0, 9, -8, -1, 10],
    [-9, -10, -8, 1, 0, -1, 9, 10, 8],
    [-7, 0, 10, -8, 2, 7, -10, 1, 8],
    [-3, 2, -2, 3, 10, 2, -2, 3, -3],
    [-8, -7, -10, 0, 2, 1, 7, 10, 9],
    [-10, -1, 9, -9, -2, 8, -9, 0, 9],
]


def filters_of(weight: Tensor, clusters: Sequence[int], top: float) -> Iterator[str]:
    """Each filter as a picture of 3 x 3, with a bar in the colour of its cluster."""
    left = 20 + (6 - len(clusters)) * 37
    for i, cluster in enumerate(clusters):
        x = left + 74 * i
        for j, number in enumerate(weight[i].flatten().tolist()):
            place = (x + 20 * (j % 3), top + 20 * (j // 3), 19, 19)
            yield box(*place, "zero")
            yield box(*place, "high" if number > 0 else "low", opacity=round(min(1.0, abs(number)), 2))
        yield box(x, top + 66, 59, 5, ("fill-a", "fill-b", "fill-c")[cluster])


def overview() -> str:
    """Six filters as trained, tied to three, and merged; the numbers are those of a network that pdc-fx compressed."""
    network = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 2, 1))
    image = torch.zeros(1, 1, 8, 8)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor(SHAPES).view(6, 1, 3, 3) / 10)  # type: ignore[operator,union-attr]
        network[2].weight.copy_(torch.ones(2, 6, 1, 1))  # type: ignore[operator,union-attr]
    trained = network[0].weight.detach().clone()  # type: ignore[operator,union-attr]
    plan = pdc_fx.plan(network, pdc_fx.analyze(network, image), flops_reduction=0.5)
    plan = pdc_fx.tie(network, plan, mode="hard").snap()
    compact = pdc_fx.rewrite(network, plan, image)
    weight = compact.get_parameter("0.weight")
    clusters = plan.clusters[0].tolist()
    stages = [
        ("Trained: six filters, some of them nearly alike", trained, clusters),
        ("Tied: each cluster becomes identical", network[0].weight, clusters),
        ("Merged: one of each stays, and no output changes", weight, list(range(len(weight)))),
    ]
    parts = []
    for i, (words, tensor, colours) in enumerate(stages):
        top = 44 + 136 * i
        parts += [text(20, top - 16, words, "title ink"), *filters_of(tensor.detach(), colours, top)]  # type: ignore[arg-type]
    return drawing(402, "Six filters of 3 by 3 are tied into three clusters and merged to three", parts)


# ------------------------------------------------------------------------------------------------------------------ bars
def bars(title: str, sections: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], *, unit: str = "%") -> str:
    """Horizontal bars from 0 to 100, in sections; the first of each is ours and stands out."""
    parts, y = [text(20, 28, title, "title ink")], 40.0
    for heading, rows in sections:
        parts.append(text(20, y + 22, heading, "soft"))
        y += 32
        for label, value, kind in rows:
            parts.append(text(196, y + 14, label, "small ink end"))
            parts.append(box(204, y + 2, max(value, 0) * 2.1, 15, kind))
            parts.append(text(210 + max(value, 0) * 2.1, y + 14, f"{value:.1f}{unit}", "small ink"))
            y += 21
        y += 4
    return drawing(y + 14, title, parts)
