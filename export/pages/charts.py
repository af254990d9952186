"""Training curves as inline SVG, from the records of ``metrics.jsonl``.

They are drawn here, at the time of writing, and not by a charting library: Plotly's script would add 4.5 MB to a page of some
100 kB and brings its own colours, where lines of plain SVG follow the page from light to dark, need no script, and print. What a
pointer shows of a point stands in a table below the curves, for the keyboard and for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdc_fx.errors import InputError

# The charts are drawn in a box of WIDTH x HEIGHT units, the curves in what these margins leave of it.
WIDTH, HEIGHT = 380.0, 214.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 12.0, 40.0
BOX = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
}

_LOG_SPAN = 100.0
"""A residual that spans at least this factor is drawn on a logarithmic axis."""

_FLAT = 1e-4
"""A curve that varies by less than this part of its size is drawn flat: six digits could not label its axis."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """One measured value; ``label`` is what a pointer resting on it shows."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve; ``last`` is its last value as a text, ``name`` is empty where it is the only one of its chart."""

    name: str
    points: tuple[Point, ...]
    last: str

    @property
    def path(self) -> str:
        """The ``points`` attribute of an SVG polyline."""
        return " ".join(f"{p.x:.1f},{p.y:.1f}" for p in self.points)


@dataclass(frozen=True)
class Chart:
    """One line chart; ``note`` says what is not drawn."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    note: str


@dataclass(frozen=True)
class Quantity:
    """What a chart shows: the keys in the records with the names of their curves, and how a value is written.

    Where ``may_be_steady``, one value throughout is a sentence and no chart.
    """

    keys: tuple[tuple[str, str], ...]
    title: str
    unit: str
    write: Callable[[float], str]
    factor: float = 1.0
    may_be_logarithmic: bool = False
    may_be_steady: bool = False


QUANTITIES = (
    Quantity((("loss", ""),), "Training loss", "loss", lambda v: f"{v:.4g}"),
    Quantity(
        (("accuracy", "held out"), ("train_accuracy", "training")),
        "Accuracy",
        "accuracy, %",
        lambda v: f"{v:.2f}%",
        factor=100.0,
    ),
    Quantity(
        (("residual", ""),),
        "Tie residual",
        "residual",
        lambda v: f"{v:.2g}",
        may_be_logarithmic=True,
        may_be_steady=True,
    ),
    Quantity((("lr", ""),), "Learning rate", "learning rate", lambda v: f"{v:.3g}"),
    Quantity((("macs", ""),), "MACs by the plan", "MACs, millions", lambda v: f"{v:.4g} M", 1e-6, may_be_steady=True),
)


def epochs_of(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of kind ``epoch`` in their order; an epoch that was run again counts as run last.

    >>> epochs_of([{"kind": "epoch", "epoch": 1, "loss": 2.0}, {"kind": "network"}, {"kind": "epoch", "epoch": 1, "loss": 1.0}])
    [{'kind': 'epoch', 'epoch': 1, 'loss': 1.0}]

    Raises:
        InputError: a record of kind ``epoch`` without its number.
    """
    epochs: dict[int, Mapping[str, Any]] = {}
    for index, record in enumerate(metrics):
        if record.get("kind") == "epoch":
            if not isinstance(record.get("epoch"), int):
                raise InputError("an epoch record does not say which epoch it is", where=f"metrics, record {index}")
            epochs[record["epoch"]] = record
    return [epochs[number] for number in sorted(epochs)]


Curve = list[tuple[int, float]]
"""Pairs of epoch and value."""


def curve_of(epochs: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """The values of a key, where it was measured."""
    return [(record["epoch"], float(record[key])) for record in epochs if record.get(key) is not None]


def charts(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[str]]:
    """One chart for each quantity that was measured at least once; a sentence where it stayed the same and that is all to say.

    Raises:
        InputError: a record of kind ``epoch`` without its number.
    """
    epochs, found, steady = epochs_of(metrics), list[Chart](), list[str]()
    for wanted in QUANTITIES:
        curves = {name: curve_of(epochs, key) for key, name in wanted.keys}
        values = {value for curve in curves.values() for _, value in curve}
        if wanted.may_be_steady and len(values) == 1 and all(map(math.isfinite, values)):
            steady.append(f"{wanted.title}: {wanted.write(values.pop() * wanted.factor)} after every epoch.")
        elif any(map(math.isfinite, values)):
            found.append(chart(wanted, curves))
    return found, steady


def table(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of what the charts show, for those who do not see them."""
    epochs = epochs_of(metrics)
    columns = [
        (f"{wanted.title}, {name}" if name else wanted.title, wanted, key)
        for wanted in QUANTITIES
        for key, name in wanted.keys
        if curve_of(epochs, key)
    ]
    rows = []
    for record in epochs:
        values = [(wanted, record.get(key)) for _, wanted, key in columns]
        cells = ["–" if value is None else wanted.write(float(value) * wanted.factor) for wanted, value in values]
        rows.append([str(record["epoch"]), *cells])
    return ["Epoch", *(title for title, _, _ in columns)], rows


def chart(wanted: Quantity, curves: Mapping[str, Curve]) -> Chart:
    """Place the finite values of ``curves`` in the box; there must be one at least."""
    finite = {
        name: [(epoch, value * wanted.factor) for epoch, value in curve if math.isfinite(value)]
        for name, curve in curves.items()
    }
    every = [pair for curve in finite.values() for pair in curve]
    low, high = min(v for _, v in every), max(v for _, v in every)
    logarithmic = wanted.may_be_logarithmic and low > 0 and high >= _LOG_SPAN * low
    ticks = decades(low, high) if logarithmic else round_steps(low, high)
    scale = math.log10 if logarithmic else float
    bottom, top = scale(min(low, ticks[0])), scale(max(high, ticks[-1]))
    first, last = min(e for e, _ in every), max(e for e, _ in every)

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(value) - bottom) / (top - bottom)

    lost = sum(map(len, curves.values())) - len(every)
    return Chart(
        title=wanted.title,
        unit=f"{wanted.unit} (log scale)" if logarithmic else wanted.unit,
        lines=tuple(
            Line(
                name,
                tuple(Point(x(e), y(v), f"epoch {e}{', ' * bool(name)}{name}: {wanted.write(v)}") for e, v in curve),
                wanted.write(curves[name][-1][1] * wanted.factor),
            )
            for name, curve in finite.items()
            if curve
        ),
        x_ticks=tuple(Tick(x(e), f"{e:g}") for e in round_steps(first, last, whole=True) if first <= e <= last),
        y_ticks=tuple(Tick(y(v), power_of_ten(v) if logarithmic else f"{v:.6g}") for v in ticks),
        note=f"{lost} value{'s' * (lost > 1)} not drawn: not finite" if lost else "",
    )


def round_steps(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers that enclose ``low`` to ``high``; never fewer than two.

    >>> round_steps(0.31, 1.9), round_steps(0.0, 0.0), round_steps(1, 30, whole=True)
    ([0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 10.0, 20.0, 30.0])
    """
    size = max(abs(low), abs(high))
    if not whole and high - low <= _FLAT * size + 1e-280:  # on the lowest line if it is zero, else in the middle
        low, high = (0.0, 1.0) if size <= 1e-280 else (low - size / 2, high + size / 2)
    rough = max((high - low) / 4, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    if whole:
        step = float(max(1, round(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten that enclose ``low`` to ``high``, at most six of them.

    >>> decades(3e-7, 0.4)
    [1e-07, 1e-05, 0.001, 0.1, 10.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 5))
    return [10.0**exponent for exponent in range(first, last + step, step)]


def power_of_ten(value: float) -> str:
    """How an axis names a decade.

    >>> power_of_ten(1e-07), power_of_ten(1.0), power_of_ten(10.0)
    ('10⁻⁷', '1', '10')
    """
    exponent = round(math.log10(value))
    if exponent in (0, 1):
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
