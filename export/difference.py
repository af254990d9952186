"""Where two forms of a model part: the first ONNX node that computes what PyTorch does not.

Both run on one input. On the PyTorch side every result of every torch function is recorded; on the ONNX side every
node's output. A node *matches* if some PyTorch value with as many elements agrees with it, whatever its shape: the
exporter reshapes, folds and splits, so neither names nor positions correspond. A node without a match is nothing yet
(half of a decomposed operator, a folded constant) as long as something computed from it matches. So the culprit is the
first node, in the order of execution, that does not match and from which nothing that matches is computed.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pdc_fx.export.inputs import run_on
from pdc_fx.export.onnx import NAME_SCOPES
from pdc_fx.export.values import node_values
from pdc_fx.passes.compare import distance
from pdc_fx.trace import evaluating, fresh

Values = Mapping[int, Sequence[NDArray[Any]]]
"""Recorded values, flat, by their number of elements."""

_SAMPLE = 64  # elements compared before a whole pair of tensors is


@dataclass(frozen=True)
class Difference:
    """The first ONNX node that differs.

    ``modules`` are the paths of the PyTorch modules it computes, more than one where the exporter merged them;
    ``max_rel_error`` is to the closest PyTorch value, relative to that value's largest element; None without one.
    """

    node: str
    op_type: str
    output: str
    modules: tuple[str, ...]
    max_rel_error: float | None

    def __str__(self) -> str:
        where = " + ".join(self.modules) or "the model itself"
        off = "no value of this size in PyTorch" if self.max_rel_error is None else f"off by {self.max_rel_error:.2g}"
        return f"{self.op_type} node {self.node!r} of {where}, output {self.output!r}: {off}"


def first_difference(
    model: nn.Module, proto: Any, args: tuple[Any, ...], feed: dict[str, NDArray[Any]], tolerance: float
) -> Difference | None:
    """The first node of ``proto`` (an ``onnx.ModelProto``) that differs from ``model``; None if all match.

    Args:
        args: the arguments of one forward call; ``feed`` holds the same values by input name.
        tolerance: largest absolute error over the largest absolute value of the PyTorch tensor.

    Raises:
        TraceError, InputError: the model, or the file, does not run on these values.
    """
    reference = record_values(model, args)
    outputs = node_values(proto, feed)
    errors = {name: closest(value, reference) for name, value in outputs.items() if value.dtype.kind == "f"}
    matched = {name for name, error in errors.items() if error is not None and error <= tolerance}
    nodes = list(proto.graph.node)
    leads_to_match = _leads_to_match(nodes, matched)
    for node, matches_later in zip(nodes, leads_to_match, strict=True):
        differing = [name for name in node.output if name in errors and name not in matched]
        if differing and not matches_later:
            modules = _modules(node, model)
            return Difference(node.name, node.op_type, differing[0], modules, errors[differing[0]])
    return None


def _leads_to_match(nodes: Sequence[Any], matched: set[str]) -> list[bool]:
    """For each node, in order of execution: is a matching value its own or computed from its own?"""
    good = set(matched)  # values that match or lead to a match
    found: list[bool] = []
    for node in reversed(nodes):
        leads = any(name in good for name in node.output)
        if leads:
            good.update(_reads(node))
        found.append(leads)
    return found[::-1]


def _reads(node: Any) -> Iterator[str]:
    """Names of the values a node reads, those its sub-graphs take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def _modules(node: Any, model: nn.Module) -> tuple[str, ...]:
    """The modules whose parameters a node reads, then the one the exporter says it came from."""
    known = {name for name, _ in model.named_modules() if name}
    owners = [name.rpartition(".")[0] for name in node.input]
    owners = [owner for owner in owners if owner in known]
    scopes = next((prop.value for prop in node.metadata_props if prop.key == NAME_SCOPES), "[]")
    scope = [name for name in ast.literal_eval(scopes) if name in known][-1:]
    return tuple(dict.fromkeys([*owners, *scope]))


# --------------------------------------------------------------------------------------------- the two recordings


class _Recorder(TorchFunctionMode):
    """Keeps a copy of every floating-point tensor a torch function returns, as it was when it was returned."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, list[NDArray[Any]]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            self.record(value)
        return result

    def record(self, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter):
            copy = value.detach().to(dtype=torch.float32, device="cpu", copy=True).flatten().numpy()
            self.values[copy.size].append(copy)


def record_values(model: nn.Module, args: tuple[Any, ...]) -> Values:
    """All floating-point results of all torch functions of one forward pass in eval mode, by number of elements.

    >>> {size: len(values) for size, values in record_values(nn.Linear(3, 2), (torch.zeros(4, 3),)).items()}
    {8: 1}
    """
    recorder, args = _Recorder(), fresh(args)
    with evaluating(model), recorder:
        run_on(model, args)
    return recorder.values


# --------------------------------------------------------------------------------------------- comparison


def closest(value: NDArray[Any], reference: Values) -> float | None:
    """Relative error of ``value`` to the most similar reference of its size; None if there is none.

    The error is the largest absolute difference over the largest absolute value of the reference. Pairs that differ in
    a sample of elements are not compared in full: their error is that of the sample, a lower bound.

    >>> closest(np.array([1.0, 2.0]), {2: [np.array([9.0, 9.0]), np.array([1.0, 2.5])]})
    0.2
    """
    flat = np.ravel(value)
    stride = max(1, flat.size // _SAMPLE)
    best: float | None = None
    for candidate in reference.get(flat.size, ()):
        error = relative_error(flat[::stride], candidate[::stride], scale=_largest(candidate))
        if best is not None and error >= best:
            continue
        error = relative_error(flat, candidate)
        best = error if best is None else min(best, error)
    return best


def relative_error(value: NDArray[Any], reference: NDArray[Any], *, scale: float | None = None) -> float:
    """Largest absolute difference over the largest absolute value of ``reference``, fillers left out.

    What is not finite must be the same in both, or the error is infinite.

    >>> relative_error(np.array([1.0, 3.0]), np.array([1.0, 4.0])), relative_error(np.zeros(2), np.zeros(2))
    (0.25, 0.0)
    >>> relative_error(np.array([-1e9, 2.0]), np.array([-1e9, 1.0])), relative_error(np.array([1.0]), np.array([-np.inf]))
    (1.0, inf)
    """
    error, size = distance(torch.as_tensor(reference), torch.as_tensor(value))
    return ratio(error, size if scale is None else scale)


def ratio(error: float, scale: float) -> float:
    """An error as a part of what was to come out; infinite where that is zero and the error is not.

    >>> ratio(1.0, 4.0), ratio(0.0, 0.0), ratio(1.0, 0.0)
    (0.25, 0.0, inf)
    """
    return error / scale if scale else (0.0 if error == 0.0 else float("inf"))


def _largest(reference: NDArray[Any]) -> float:
    return float(np.max(np.abs(reference), initial=0.0, where=np.isfinite(reference)))
