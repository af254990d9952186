"""Where the time of an ONNX file goes, node by node, as ONNX Runtime records it, and why fewer multiply-accumulates took no less.

Be T the time of the dense file, R the ratio of the multiply-accumulates, and t the time of the compact file. Time that shrinks as
they do would be T / R. The excess t - T / R is a sum over kinds of operators k of t_k - T_k / R, and that is what is told.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pdc_fx.errors import PdcError
from pdc_fx.export.session import bind, make_session, random_feed
from pdc_fx.files import scratch_folder
from pdc_fx.passes.budget import BLOCKS

PRODUCTS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
"""Operators that multiply and accumulate, as the standard and ONNX Runtime's own rewriting name them."""

LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""Operators that only move values; the first two lead into and out of blocks of channels on a CPU."""

_WARMUP = 2
_KERNEL = "_kernel_time"
_RUN = "model_run"
_BETWEEN = "between nodes"


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that ONNX Runtime runs, after its own rewriting.

    Attributes:
        name, operator, provider: as ONNX Runtime calls them.
        ms: time of one run. On a GPU it is the time to start the node, not to run it.
        macs: multiply-accumulates of one run as the shapes say, blocks filled up included; 0 for other operators.
        widths: channels read and written; empty for other operators.
        depthwise: each channel is convolved alone.
    """

    name: str
    operator: str
    provider: str
    ms: float
    macs: int = 0
    widths: tuple[int, ...] = ()
    depthwise: bool = False

    @property
    def kind(self) -> str:
        """Operators of one kind lose or gain time together."""
        if self.operator in PRODUCTS:
            plain = "convolutions" if "Conv" in self.operator else "matrix products"
            return "depthwise" if self.depthwise else plain
        if self.operator in LAYOUT:
            return "layout"
        return _BETWEEN if self.operator == _BETWEEN else "others"

    def uneven(self, block: int) -> bool:
        """Whether a width is no multiple of ``block``: it is padded, or computed without blocks."""
        return any(width % block for width in self.widths)


def profile(
    paths: Sequence[str | os.PathLike[str]],
    batch: int,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 9,
) -> list[tuple[NodeTime, ...]]:
    """For each file, run by turns, the time of every node and, last of all, of what a run spends between them.

    Raises:
        ArtifactError, InputError: as of :func:`~pdc_fx.export.session.make_session`.
        PdcError: there is no room for the record.
    """
    with scratch_folder() as folder:
        sessions = [
            make_session(path, provider=provider, threads=threads, tf32=True, profile=folder / f"nodes{number}")
            for number, path in enumerate(paths)
        ]
        calls = [bind(session, random_feed(session, batch)) for session in sessions]
        for run in range(_WARMUP + runs):
            for call in calls if run % 2 == 0 else reversed(calls):
                call()
        records = [recorded(session) for session in sessions]
    return [node_times(record, _WARMUP) for record in records]


def recorded(session: Any) -> list[Mapping[str, Any]]:
    """The events that a session has recorded until now; it ends its record.

    Raises:
        PdcError: the record is not whole.
    """
    path = Path(session.end_profiling())
    try:
        events: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # ONNX Runtime does not say that there was no room for it
        raise PdcError(
            "ONNX Runtime's record of times is not whole",
            where=str(path),
            hint="make room in the folder for temporary files, or set TMPDIR to another",
        ) from error
    return events


def node_times(events: Sequence[Mapping[str, Any]], warmup: int = 0) -> tuple[NodeTime, ...]:
    """Means over the middle third of the runs in a record of ONNX Runtime, by how long they took as a whole.

    So the nodes' times and what is left between them add up to that of a run. The first ``warmup`` runs do not count.
    """
    runs = sorted((event for event in events if event["name"] == _RUN), key=lambda event: int(event["ts"]))[warmup:]
    by_time = sorted(runs, key=lambda event: int(event["dur"]))
    middle = by_time[len(runs) // 3 : len(runs) - len(runs) // 3]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        within = any(run["ts"] <= event["ts"] <= run["ts"] + run["dur"] for run in middle)
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL) and within:
            found.setdefault(event["name"].removesuffix(_KERNEL), []).append(event)
    nodes = [_node(name, ran, len(middle)) for name, ran in found.items()]
    whole = sum(run["dur"] for run in middle) / 1e3 / max(1, len(middle))
    return (*nodes, NodeTime(_BETWEEN, _BETWEEN, "", max(0.0, whole - sum(node.ms for node in nodes))))


def _node(name: str, ran: Sequence[Mapping[str, Any]], runs: int) -> NodeTime:
    args = ran[-1]["args"]
    ms = sum(event["dur"] for event in ran) / 1e3 / runs
    operator = str(args["op_name"])
    inputs, outputs = (
        [tuple(shape) for entry in args.get(key, ()) for shape in entry.values()]
        for key in ("input_type_shape", "output_type_shape")
    )
    node = NodeTime(name, operator, str(args.get("provider", "")), ms)
    if operator in PRODUCTS and len(inputs) > 1 and len(inputs[0]) > 1 and outputs:
        macs, widths, depthwise = _product(operator, inputs[0], inputs[1], outputs[0])
        return replace(node, macs=macs, widths=widths, depthwise=depthwise)
    return node


def _product(
    operator: str, image: tuple[int, ...], weight: tuple[int, ...], result: tuple[int, ...]
) -> tuple[int, tuple[int, ...], bool]:
    """Multiply-accumulates, channels read and written, and whether each channel is convolved alone."""
    if "Conv" not in operator:
        return prod(result) * image[-1], (image[-1], result[-1]), False
    alone = weight[1] == 1 < min(weight[0], image[1], result[1])
    return prod(image if operator == "ConvTranspose" else result) * prod(weight[1:]), (image[1], result[1]), alone


def placement(nodes: Sequence[NodeTime]) -> dict[str, dict[str, int]]:
    """Provider -> operator -> number of nodes that run there.

    >>> placement([NodeTime("a", "Conv", "CUDAExecutionProvider", 0.1), NodeTime("b", "Shape", "CPUExecutionProvider", 0.1)])
    {'CUDAExecutionProvider': {'Conv': 1}, 'CPUExecutionProvider': {'Shape': 1}}
    """
    places: dict[str, Counter[str]] = {}
    for node in nodes:
        if node.provider:
            places.setdefault(node.provider, Counter())[node.operator] += 1
    return {provider: dict(counts.most_common()) for provider, counts in places.items()}


def explain(dense: Sequence[NodeTime], compact: Sequence[NodeTime], macs: tuple[int, int]) -> tuple[str, ...]:
    """In at most two lines, where the compact file on a CPU spends more than the dense file's time over the ratio of the MACs.

    Args:
        dense, compact: what :func:`profile` gives at the same batch size.
        macs: multiply-accumulates of one call of each.

    >>> dense = [NodeTime("a", "Conv", "", 8.0, 800, (64, 64)), NodeTime("b", "Add", "", 2.0)]
    >>> compact = [NodeTime("a", "Conv", "", 5.0, 480, (61, 61)), NodeTime("b", "Add", "", 2.0)]
    >>> print(*explain(dense, compact, (800, 400)), sep="\\n")
    2.00 ms over dense/2.00: convolutions +1.00, others +1.00
    widths not multiples of 16: 100% of products' time, dense 0%; MACs +20%
    """
    ratio, block = macs[0] / macs[1], BLOCKS["cpu"]
    total = sum(node.ms for node in compact) - sum(node.ms for node in dense) / ratio
    if total <= 0:
        return ("the profile shows no such loss: it is within what the times vary by",)
    kinds = dict.fromkeys(node.kind for node in (*compact, *dense))
    excess = {kind: _time(compact, kind) - _time(dense, kind) / ratio for kind in kinds}
    largest = sorted(excess.items(), key=lambda item: -item[1])[:2]
    parts = ", ".join(f"{kind} {ms:+.2f}" for kind, ms in largest if ms > total / 10)
    lines = [f"{total:.2f} ms over dense/{ratio:.2f}: {parts}"]
    shares = [uneven_share(nodes, "ms", block) for nodes in (dense, compact)]
    added = [sum(node.macs for node in nodes) / own - 1 for nodes, own in zip((dense, compact), macs, strict=True)]
    if shares[1] > shares[0] + 0.01 or added[1] > added[0] + 0.01:
        lines.append(
            f"widths not multiples of {block}: {shares[1]:.0%} of products' time, dense {shares[0]:.0%}; "
            f"MACs {added[1]:+.0%}"
        )
    return tuple(lines)


def _time(nodes: Sequence[NodeTime], kind: str) -> float:
    return sum(node.ms for node in nodes if node.kind == kind)


def uneven_share(nodes: Sequence[NodeTime], of: str, block: int) -> float:
    """Share of the products' time (``ms``) or multiply-accumulates (``macs``) in nodes with a width that fills no blocks of ``block``."""
    values = [(float(getattr(node, of)), node.uneven(block)) for node in nodes if node.operator in PRODUCTS]
    whole = sum(value for value, _ in values)
    return sum(value for value, uneven in values if uneven) / whole if whole else 0.0
