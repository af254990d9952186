"""``report.html`` of an output directory: what was merged, what it did to each layer, and what was measured.

The network and the tables are those of the dependency report (:mod:`pdc_fx.export.inspection`), with widths before and after. Curves
are inline SVG (:mod:`pdc_fx.export.pages.charts` says why), heat maps are drawn by the page's own script
(:mod:`pdc_fx.export.pages.similarity`). What was not measured is said to be so: it is never shown as passed, or as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pdc_fx.errors import InputError
from pdc_fx.export.pages.charts import BOX, charts, table
from pdc_fx.export.pages.model_graph import ModelGraph
from pdc_fx.export.pages.network import GroupRow, group_rows, network_values
from pdc_fx.export.pages.page import render
from pdc_fx.export.pages.similarity import LARGEST, similarities
from pdc_fx.ir import ClusterPlan, Integers
from pdc_fx.words import number, percent, quantity

if TYPE_CHECKING:
    from pdc_fx.export.benchmark import BenchmarkReport

SCRIPTS = ("page.js", "tables.js", "graph.js", "similarity.js")

STAGES = ("teacher", "tied", "compact", "onnx")
"""The accuracies that every report speaks of, whether they were measured or not."""

COMPARISONS = {
    "tied_vs_compact": ("Tied and compact network", "float64"),
    "compact_vs_onnx": ("Compact network and ONNX file", "float32"),
}
"""The parts of a certificate that compare two forms of the model: what they are, and the precision where it is not given."""

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measured:
    """The accuracy of one form of the model; ``change`` is in percentage points against the network before compression."""

    name: str
    value: str
    change: str = ""


@dataclass(frozen=True)
class MergedRow:
    """A group in the table.

    Attributes:
        width: channels that remain; ``kept`` is their share in percent.
        clusters: how many clusters of which size there are.
    """

    row: GroupRow
    width: int
    kept: float
    clusters: str


@dataclass(frozen=True)
class Cost:
    """A count before and after, and the lengths of its bars in percent of the largest layer's."""

    before: int
    after: int
    before_bar: float
    after_bar: float


@dataclass(frozen=True)
class LayerRow:
    """A layer in the chart; ``shapes`` are those of its largest weight, ``at`` is the first node that reads one of its tensors."""

    module: str
    at: int | None
    shapes: tuple[str, str]
    macs: Cost
    params: Cost


@dataclass(frozen=True)
class Verdict:
    """One comparison of the certificate; ``passed`` is None where there is no verdict."""

    name: str
    passed: bool | None
    error: str
    allowed: str
    precision: str
    where: str


def render_report(
    plan: ClusterPlan,
    graph: ModelGraph,
    *,
    title: str,
    accuracy: Mapping[str, float],
    metrics: Sequence[Mapping[str, Any]],
    certificate: Mapping[str, Any],
    command: str,
    original: Mapping[str, Tensor] | None = None,
    timing: BenchmarkReport | None = None,
) -> str:
    """The page as text; every name in it is escaped.

    Args:
        plan: what was merged.
        graph: the network at full width, analysed: its groups are those of the plan.
        title: name of the model.
        accuracy: top-1, 0 to 1, of ``teacher``, ``tied``, ``compact`` and ``onnx``, as far as they were measured; others
            are shown after these.
        metrics: records as ``metrics.jsonl`` holds them; only those of kind ``epoch`` are drawn.
        certificate: nested mapping of plain values; its ``passed`` is the verdict, and no verdict where it is missing.
        command: how to repeat it; may be empty.
        original: state dict of the network before compression, to compare its filters.
        timing: what a benchmark has measured, if one ran.

    Raises:
        InputError: an accuracy outside 0 to 1, or an epoch record without its number.
    """
    rows = merged_rows(plan, graph)
    stages, parts = measured(accuracy), verdicts(certificate)
    drawn, steady = charts(metrics)
    shown, left_out = ([], 0) if original is None else similarities(plan, original, graph.stakes)
    network = network_values(graph, plan.widths)
    return render(
        "report.html.j2",
        scripts=SCRIPTS,
        **{**network, "data": {**network["data"], "similarity": [one.to_dict() for one in shown]}},
        title=title,
        command=command,
        passed=verdict(certificate),
        sentences=summary(plan, stages, parts),
        figures=figures(plan, stages, parts),
        measured=stages,
        verdicts=parts,
        disagreements=disagreements(plan, certificate),
        certificate=list(flattened(certificate)),
        widths=plan.widths,
        rows=rows,
        layers=layer_rows(plan, graph),
        charts=drawn,
        steady=steady,
        values=table(metrics),
        box=BOX,
        similar=[(one.group, plan.groups.groups[one.group].name) for one in shown],
        left_out=number(left_out, "other group") if left_out else "",
        largest=LARGEST,
        timing=timing,
        engines=(),
    )


def share_gone(before: int, after: int) -> float:
    """What was removed, 0 to 1."""
    return 1.0 - after / before if before else 0.0


def summary(plan: ClusterPlan, stages: Sequence[Measured], parts: Sequence[Verdict]) -> list[str]:
    """What a person should know first, one sentence each."""
    macs, params = (
        percent(share_gone(*counts))
        for counts in ((plan.macs_before, plan.macs_after), (plan.params_before, plan.params_after))
    )
    found = [
        f"{macs} of the multiply-accumulates (MACs) and {params} of the parameters are gone."
        if plan.macs_after < plan.macs_before
        else "Nothing was removed from this network: the plan keeps every multiply-accumulate (MAC)."
    ]
    by_name = {stage.name: stage for stage in stages}
    compact, whole = by_name["compact"], by_name.get("original", by_name["teacher"])
    if compact.change:
        found.append(
            f"The {whole.name} network classifies {whole.value} of the test images correctly, the compact network "
            f"{compact.value} ({compact.change})."
        )
    for part in parts:
        if part.passed:
            to = {NOT_MEASURED: "", "0": " bit for bit"}.get(part.error, f" to {part.error}")
            found.append(f"{part.name} agree{to} in {part.precision}.")
        elif part.passed is False:
            found.append(f"{part.name} do not agree: relative error {part.error}, allowed {part.allowed}.")
    return found


def figures(plan: ClusterPlan, stages: Sequence[Measured], parts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """The figures at the top: a value, what it is, and what it was."""
    compact = stages[STAGES.index("compact")]
    channels, kept = plan.groups.mergeable_channels, sum(plan.widths.values())
    found = [
        (percent(share_gone(before, after)), f"of the {what} removed", f"{quantity(before)} → {quantity(after)}")
        for what, before, after in (
            ("MACs", *plan.macs_of_one),
            ("parameters", plan.params_before, plan.params_after),
        )
    ]
    found.append((f"{channels - kept:,}", "channels merged away", f"{channels:,} → {kept:,}"))
    found.append(
        ("–" if compact.value == NOT_MEASURED else compact.value, "test accuracy", compact.change or NOT_MEASURED)
    )
    first = parts[0]
    found.append(
        ("–", "tied against compact", NOT_MEASURED)
        if first.passed is None
        else (first.error, "tied against compact", f"relative error, {first.precision}")
    )
    return found


def scientific(value: float | None) -> str:
    """An error as a person writes it, with two digits; None is what is not finite.

    >>> scientific(2.34e-16), scientific(0.0), scientific(0.25), scientific(None)
    ('2.3×10⁻¹⁶', '0', '0.25', 'not finite')
    """
    if value is None or not math.isfinite(value):
        return "not finite"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    if value == 0 or -3 < int(exponent) < 3:
        return f"{value:.2g}"
    digits = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mantissa = mantissa.removesuffix(".0")
    return f"10{digits}" if mantissa == "1" else f"{mantissa}×10{digits}"


def verdicts(certificate: Mapping[str, Any]) -> list[Verdict]:
    """The comparisons, those that were not made included.

    >>> [(part.passed, part.error) for part in verdicts({"tied_vs_compact": {"passed": True, "max_rel_error": 2e-16}})]
    [(True, '2×10⁻¹⁶'), (None, 'not measured')]
    """
    found = []
    for key, (name, precision) in COMPARISONS.items():
        part = certificate.get(key)
        if not isinstance(part, Mapping) or not isinstance(part.get("passed"), bool):
            found.append(Verdict(name, None, NOT_MEASURED, "", precision, ""))
            continue
        error = scientific(part["max_rel_error"]) if "max_rel_error" in part else NOT_MEASURED
        allowed = scientific(part["tolerance"]) if "tolerance" in part else ""
        where = str(part.get("first_difference") or "")
        found.append(Verdict(name, part["passed"], error, allowed, str(part.get("dtype", precision)), where))
    return found


def merged_rows(plan: ClusterPlan, graph: ModelGraph) -> list[MergedRow]:
    """The groups in the order in which they are made."""
    return [
        MergedRow(row, plan.widths[i], round(100 * plan.widths[i] / row.group.channels, 2), clusters(plan.clusters[i]))
        for i, row in enumerate(group_rows(graph))
    ]


def clusters(labels: Integers) -> str:
    """How large the clusters of a group are, in words.

    >>> clusters(np.array([0, 1, 0, 2, 0, 1])), clusters(np.array([0, 1])), clusters(np.array([0, 0]))
    ('2 of 2 to 3 channels, 1 alone', 'all alone', '1 of 2 channels')
    """
    sizes = np.bincount(labels)
    merged, alone = sizes[sizes > 1], int((sizes == 1).sum())
    if not len(merged):
        return "all alone"
    low, high = int(merged.min()), int(merged.max())
    several = f"{len(merged)} of {low} channels" if low == high else f"{len(merged)} of {low} to {high} channels"
    return f"{several}, {alone} alone" if alone else several


def layer_rows(plan: ClusterPlan, graph: ModelGraph) -> list[LayerRow]:
    """The layers that multiply, as they run."""
    groups, after = plan.groups, graph.costs(plan.widths)
    shown = [layer for layer in graph.layers if layer.macs]
    most = max((layer.macs // plan.samples for layer in shown), default=1) or 1
    largest = max((layer.params for layer in shown), default=1) or 1
    weights: dict[str, str] = {}
    for site in groups.sites:
        module = site.tensor.rpartition(".")[0]
        if prod(groups.shapes[site.tensor]) > prod(groups.shapes.get(weights.get(module, ""), (0,))):
            weights[module] = site.tensor

    def cost(before: int, now: int, of: int) -> Cost:
        return Cost(before, now, round(100 * before / of, 2), round(100 * now / of, 2))

    return [
        LayerRow(
            layer.module,
            layer.at,
            (
                "×".join(map(str, groups.shapes[weights[layer.module]])),
                "×".join(map(str, groups.compact_shape(weights[layer.module], plan.widths))),
            ),
            cost(layer.macs // plan.samples, after[layer.module][0] // plan.samples, most),
            cost(layer.params, after[layer.module][1], largest),
        )
        for layer in shown
    ]


def measured(accuracy: Mapping[str, float]) -> list[Measured]:
    """The accuracies in the order of the pipeline, those that were not measured included.

    >>> [m.value + m.change for m in measured({"teacher": 0.931, "compact": 0.928})]
    ['93.10%', 'not measured', '92.80%−0.30 points', 'not measured']

    Raises:
        InputError: a value outside 0 to 1.
    """
    whole = "original" if "original" in accuracy else "teacher"  # which is it where no other was brought
    found = []
    for name in (*STAGES, *(other for other in accuracy if other not in STAGES)):
        value = accuracy.get(name, math.nan)
        if not math.isnan(value) and not 0 <= value <= 1:
            raise InputError(
                "an accuracy is not between 0 and 1", where=f"{name}: {value}", hint="give a share, not percent"
            )
        change = 100 * (value - accuracy.get(whole, math.nan))
        known = name != whole and not math.isnan(change)
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
    """Counts that the certificate gives differently from the plan, one sentence each.

    Not of the parameters that are left: the certificate has those of the compact network, where modules that nothing reaches may be gone.
    """
    found = []
    counts = dict(zip(("macs_before", "macs_after"), plan.macs_of_one, strict=True)) | {
        "params_before": plan.params_before
    }
    for key, planned in counts.items():
        certified = certificate.get(key)
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
