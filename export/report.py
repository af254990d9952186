"""``report.html``: what was merged and what was measured, on one self-contained page.

The page holds no script. What was not measured is said to be so: it is never shown as passed, or as zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdc_fx.errors import InputError
from pdc_fx.export.page import render
from pdc_fx.ir import ChannelGroup, ClusterPlan

STAGES = ("teacher", "tied", "compact", "onnx")
"""The accuracies that every report speaks of, whether they were measured or not."""

NOT_MEASURED = "not measured"

# The charts are drawn in a box of WIDTH x HEIGHT units, the curves in what these margins leave of it.
WIDTH, HEIGHT = 380.0, 224.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 40.0

_LOG_SPAN = 100.0
"""A residual that spans at least this factor is drawn on a logarithmic axis."""

_FLAT = 1e-4
"""A curve that varies by less than this part of its size is drawn flat: six digits could not label its axis."""


@dataclass(frozen=True)
class Measured:
    """The accuracy of one form of the model; ``change`` is in percentage points against the teacher."""

    name: str
    value: str
    change: str = ""


@dataclass(frozen=True)
class GroupRow:
    """One channel group with the channels that remain; ``kept`` is their share in percent."""

    group: ChannelGroup
    width: int
    roles: str

    @property
    def kept(self) -> float:
        return 100.0 * self.width / self.group.channels


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
class Chart:
    """One line chart; ``note`` says what is not drawn."""

    title: str
    unit: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    last: str
    note: str

    @property
    def line(self) -> str:
        """The ``points`` attribute of an SVG polyline."""
        return " ".join(f"{p.x:.1f},{p.y:.1f}" for p in self.points)


@dataclass(frozen=True)
class Quantity:
    """A curve of the training: its key in the records, its title, the name of its axis, and how a value is written."""

    key: str
    title: str
    unit: str
    write: Callable[[float], str]
    factor: float = 1.0
    may_be_logarithmic: bool = False


def render_report(
    plan: ClusterPlan,
    *,
    title: str,
    accuracy: Mapping[str, float],
    metrics: Sequence[Mapping[str, Any]],
    certificate: Mapping[str, Any],
    command: str,
) -> str:
    """The page as text; every name in it is escaped.

    Args:
        plan: what was merged.
        title: name of the model.
        accuracy: top-1, 0 to 1, of ``teacher``, ``tied``, ``compact`` and ``onnx``, as far as they were measured; others
            are shown after these.
        metrics: records as ``metrics.jsonl`` holds them; only those of kind ``epoch`` are drawn.
        certificate: nested mapping of plain values; its ``passed`` is the verdict, and no verdict where it is missing.
        command: how to repeat it; may be empty.

    Raises:
        InputError: an accuracy outside 0 to 1, or an epoch record without its number.
    """
    return render(
        "report.html.j2",
        title=title,
        plan=plan,
        params_reduction=1.0 - plan.params_after / max(plan.params_before, 1),
        rows=group_rows(plan),
        inputs=" and ".join("×".join(map(str, shape)) or "a number" for shape, _ in plan.groups.inputs),
        measured=measured(accuracy),
        verdict=verdict(certificate),
        disagreements=disagreements(plan, certificate),
        charts=charts(metrics),
        box={
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": HEIGHT - BOTTOM,
        },
        certificate=list(flattened(certificate)),
        command=command,
    )


def group_rows(plan: ClusterPlan) -> list[GroupRow]:
    """The groups of a plan with the width each keeps, and how many tensors play which role."""
    rows = []
    for index, group in enumerate(plan.groups.groups):
        count = Counter(member.role for member in group.members)
        roles = ", ".join(f"{n} {role}{'s' * (n > 1 and role != 'channelwise')}" for role, n in count.items())
        rows.append(GroupRow(group, plan.widths[index], roles))
    return rows


def measured(accuracy: Mapping[str, float]) -> list[Measured]:
    """The accuracies in the order of the pipeline, those that were not measured included.

    >>> [m.value + m.change for m in measured({"teacher": 0.931, "compact": 0.928})]
    ['93.10%', 'not measured', '92.80%−0.30 points', 'not measured']

    Raises:
        InputError: a value outside 0 to 1.
    """
    teacher = accuracy.get("teacher", math.nan)
    found = []
    for name in (*STAGES, *(other for other in accuracy if other not in STAGES)):
        value = accuracy.get(name, math.nan)
        if not math.isnan(value) and not 0 <= value <= 1:
            raise InputError(
                "an accuracy is not between 0 and 1", where=f"{name}: {value}", hint="give a share, not percent"
            )
        change = 100 * (value - teacher)
        known = name != "teacher" and not math.isnan(change)
        found.append(
            Measured(
                {"onnx": "ONNX"}.get(name, name),
                NOT_MEASURED if math.isnan(value) else f"{100 * value:.2f}%",
                f"{round(change, 2) + 0.0:+.2f} points".replace("-", "−") if known else "",
            )
        )
    return found


def verdict(certificate: Mapping[str, Any]) -> bool | None:
    """Whether the certificate passed; None where it says nothing. A failed part fails the whole, whatever the whole says.

    >>> verdict({"passed": True}), verdict({"passed": False}), verdict({}), verdict({"passed": "yes"})
    (True, False, None, None)
    >>> verdict({"passed": True, "compact_vs_onnx": {"passed": False}})
    False
    """
    if ("passed", "no") in ((key.rpartition(".")[2], text) for key, text in flattened(certificate)):
        return False
    return True if certificate.get("passed") is True else None


def disagreements(plan: ClusterPlan, certificate: Mapping[str, Any]) -> list[str]:
    """Counts that the certificate gives differently from the plan, one sentence each."""
    found = []
    for key in ("macs_before", "macs_after", "params_before", "params_after"):
        certified, planned = certificate.get(key), getattr(plan, key)
        if isinstance(certified, int) and certified != planned:
            found.append(f"{key.replace('_', ' ')}: {certified:,} in the certificate, {planned:,} by the plan")
    return found


def flattened(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings, and lists of them, as rows of a dotted key and a text.

    >>> list(flattened({"passed": True, "onnx": {"error": 2.5e-07, "outputs": [{"name": "y"}], "notes": []}}))
    [('passed', 'yes'), ('onnx.error', '2.5e-07'), ('onnx.outputs.0.name', 'y'), ('onnx.notes', 'none')]
    """
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from flattened({str(index): item for index, item in enumerate(value)}, f"{name}.")
        else:
            yield name, plain(value)


def plain(value: Any) -> str:
    """A leaf of the certificate as a person reads it.

    >>> plain(None), plain(False), plain(0.25), plain(1814073344), plain([1, 3]), plain("float64")
    ('none', 'no', '0.25', '1,814,073,344', '1, 3', 'float64')
    """
    if value is None or value == [] or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


QUANTITIES = (
    Quantity("loss", "Training loss", "loss", lambda v: f"{v:.4g}"),
    Quantity("accuracy", "Held-out accuracy", "accuracy, %", lambda v: f"{v:.2f}%", factor=100.0),
    Quantity("residual", "Tie residual", "residual", lambda v: f"{v:.2g}", may_be_logarithmic=True),
)


def charts(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One chart for each quantity that was measured at least once; an epoch that was run again counts as run last.

    Raises:
        InputError: a record of kind ``epoch`` without its number.
    """
    epochs: dict[int, Mapping[str, Any]] = {}
    for index, record in enumerate(metrics):
        if record.get("kind") == "epoch":
            if not isinstance(record.get("epoch"), int):
                raise InputError("an epoch record does not say which epoch it is", where=f"metrics, record {index}")
            epochs[record["epoch"]] = record
    found = []
    for wanted in QUANTITIES:
        values = [(e, float(epochs[e][wanted.key])) for e in sorted(epochs) if epochs[e].get(wanted.key) is not None]
        if any(math.isfinite(value) for _, value in values):
            found.append(chart(wanted, values))
    return found


def chart(wanted: Quantity, values: Sequence[tuple[int, float]]) -> Chart:
    """Place the finite ones of ``values``, pairs of epoch and value, in the box; there must be one at least."""
    finite = [(epoch, value * wanted.factor) for epoch, value in values if math.isfinite(value)]
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    logarithmic = wanted.may_be_logarithmic and low > 0 and high >= _LOG_SPAN * low
    ticks = decades(low, high) if logarithmic else round_steps(low, high)
    scale = math.log10 if logarithmic else float
    bottom, top = scale(min(low, ticks[0])), scale(max(high, ticks[-1]))
    first, last = finite[0][0], finite[-1][0]

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(value) - bottom) / (top - bottom)

    lost = len(values) - len(finite)
    return Chart(
        title=wanted.title,
        unit=f"{wanted.unit} (log scale)" if logarithmic else wanted.unit,
        points=tuple(Point(x(e), y(v), f"epoch {e}: {wanted.write(v)}") for e, v in finite),
        x_ticks=tuple(Tick(x(e), f"{e:g}") for e in round_steps(first, last, whole=True) if first <= e <= last),
        y_ticks=tuple(Tick(y(v), power_of_ten(v) if logarithmic else f"{v:.6g}") for v in ticks),
        last=wanted.write(values[-1][1] * wanted.factor),
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
