"""``report.html``: what was merged, what was measured, on one self-contained page that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdc_fx.ir import ClusterPlan

CURVES = (("loss", "training loss"), ("accuracy", "held-out accuracy"), ("residual", "tie residual"), ("macs", "MACs"))


@dataclass(frozen=True)
class Curve:
    """One line chart in a box of 300 x 120 units."""

    title: str
    points: str
    low: str
    high: str
    epochs: tuple[int, int]


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
        accuracy: top-1, 0 to 1, by name.
        metrics: records of kind ``epoch``, as ``metrics.jsonl`` holds them.
        certificate: nested mapping of plain values.
        command: how to repeat it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pdc_fx.export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        plan=plan,
        groups=[(group, plan.widths[index]) for index, group in enumerate(plan.groups.groups)],
        accuracy=accuracy,
        curves=[curve for key, name in CURVES if (curve := _curve(metrics, key, name))],
        certificate=list(_flattened(certificate)),
        passed=bool(certificate.get("passed")),
        command=command,
    )


def _curve(metrics: Sequence[Mapping[str, Any]], key: str, title: str) -> Curve | None:
    """None where there are fewer than two points to join."""
    points = [(int(m["epoch"]), float(m[key])) for m in metrics if m.get("kind") == "epoch" and m.get(key) is not None]
    if len(points) < 2:
        return None
    (first, last), values = (points[0][0], points[-1][0]), [value for _, value in points]
    low, high = min(values), max(values)
    placed = " ".join(
        f"{300 * (epoch - first) / (last - first):.1f},{110 - 100 * (value - low) / ((high - low) or 1):.1f}" for epoch, value in points
    )
    return Curve(title, placed, f"{low:.4g}", f"{high:.4g}", (first, last))


def _flattened(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, item in enumerate(value):
                yield from _flattened(item, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)
