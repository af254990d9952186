"""From a PyTorch module to an optimised ONNX graph in memory: the two exporters of ``torch.onnx``, and their errors.

The exporter is ``torch.onnx.export`` on top of ``torch.export``. The older one, which traces, is asked where the newer one
has no translation for an operator, and where it meets control flow on values. In the second case a trace would record the
branch the example inputs take, so its result counts only where :mod:`pdc_fx.export.older` finds that no branch of the
model's own was fixed. Nowhere else is it asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from pdc_fx.errors import ExportError
from pdc_fx.export.call import HEIGHT, Axes, Call, options, positional
from pdc_fx.export.older import by_torchscript
from pdc_fx.export.silence import quiet

FIXED_BATCH_HINT = "if the model works for one batch size only, pass dynamic_batch=False (--static)"
FIXED_SIZE_HINT = "if the model works for one size of images only, leave dynamic_size (--dynamic-size) out"
VALUES_HINT = "let tensors decide, with torch.where or torch.cond"

_UNTRANSLATED = "No ONNX function found"
_SIZES = re.compile("dynamic|constraint|speciali|one size")  # what varies is what stood in the way
_LONGEST = 200  # a guard over a hundred symbols repeats each of them
_ROOT = "the model itself"
_RAISED = (OnnxExporterError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What exporters raise where they cannot: they assert, too, and look for what is not there."""


@dataclass(frozen=True)
class Captured:
    """The optimised ``onnx_ir.Model``, the exporter that made it, and what the user should know about that."""

    graph: Any
    exporter: str
    notes: tuple[str, ...] = ()


def capture(call: Call) -> Captured:
    """Export to memory, by the newer exporter if it can.

    Raises:
        ExportError: neither exporter can; the message names operator and module where they are known.
    """
    try:
        return Captured(_by_torch_export(call), "torch.export", call.notes)
    except _RAISED as error:
        cause, reason, origin = error, _reason(error), _origin(error, call.model)
    failure = f"the model cannot be exported to ONNX: {reason}"
    if not (reason.startswith(_UNTRANSLATED) or _on_values(cause)):
        raise ExportError(failure, where=origin, hint=fixed_hint(call.axes) if call.varies else "") from cause
    try:
        graph, notes = by_torchscript(call, on_values=_on_values(cause))
    except _RAISED as error:
        second = _reason(error)
        raise ExportError(
            f"{failure}. The older exporter: {second}",
            where=origin,
            hint=_hint(second, call) or _hint(reason, call) or (VALUES_HINT if _on_values(cause) else ""),
        ) from cause
    why = "control flow on values" if _on_values(cause) else reason
    return Captured(graph, "torchscript", (f"{why} [{origin}]", *call.notes, *notes))


def fixed_hint(axes: Axes) -> str:
    """The way out for a model that does not take sizes that vary."""
    size = any(HEIGHT in names.values() for names in axes.values())
    return FIXED_SIZE_HINT if size else FIXED_BATCH_HINT


def _hint(reason: str, call: Call) -> str:
    return fixed_hint(call.axes) if call.varies and _SIZES.search(reason.lower()) else ""


# --------------------------------------------------------------------------------------------- the newer exporter


def _by_torch_export(call: Call) -> Any:
    shapes = _dynamic_shapes(call)
    with quiet():
        try:
            captured: Any = torch.export.export(call.model, call.args, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(captured, dynamo=True, **options(call))
        except Exception as error:
            if _on_values(error):  # what else the exporter would try takes minutes and ends here, too
                raise
            program = torch.onnx.export(
                call.model, positional(call.args), dynamo=True, dynamic_shapes=shapes, **options(call)
            )
    assert program is not None  # typed as optional for the older exporter's sake
    _name_axes(program.model, call)
    return program.model


def _dynamic_shapes(call: Call) -> tuple[Any, ...] | None:
    """The ``dynamic_shapes`` of torch.export: the arguments' nest with an axis dict for each tensor, else None."""
    varying = iter(call.axes.values())

    def axes(value: Any) -> Any:
        if isinstance(value, Tensor):
            return dict.fromkeys(next(varying), torch.export.Dim.DYNAMIC)
        if isinstance(value, Mapping):
            return {key: axes(child) for key, child in value.items()}
        if not isinstance(value, (tuple, list)):
            return None
        children = [axes(child) for child in value]
        return tuple(children) if isinstance(value, tuple) else children

    return tuple(axes(arg) for arg in call.args) if call.varies else None


def _name_axes(graph: Any, call: Call) -> None:
    """Call the exporter's symbols for a dimension (``s77``, as in ``2*s77``) by one name wherever they occur.

    Inputs that never meet have a symbol each; with one name for both, ``s77 + s40`` is ``2*batch``.
    """
    import onnx_ir

    names: dict[str, str] = {}
    for value in graph.graph.inputs:
        for axis, name in call.axes[value.name].items():
            dim = value.shape[axis]
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value:
                names.setdefault(dim.value, name)
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(re.escape(symbol) for symbol in sorted(names))})\b")
    shared = len(set(names.values())) < len(names)

    def renamed(dim: Any) -> Any:
        if not isinstance(dim, onnx_ir.SymbolicDim) or not dim.value or not pattern.search(dim.value):
            return dim
        dim = onnx_ir.SymbolicDim(pattern.sub(lambda found: names[found[0]], dim.value))
        return dim.simplify() if shared else dim

    for value in (*graph.graph.inputs, *(output for node in graph.graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([renamed(dim) for dim in value.shape])


# --------------------------------------------------------------------------------------------- what went wrong, where


def _chain(error: BaseException) -> list[BaseException]:
    return [error, *(_chain(error.__cause__) if error.__cause__ is not None else [])]


def _on_values(error: BaseException) -> bool:
    """Whether the program looked at a value that only a run can tell."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return any(isinstance(link, GuardOnDataDependentSymNode) for link in _chain(error))


def _reason(error: BaseException) -> str:
    """The first sentence of the innermost error: the outer ones only say in which step of the exporter it happened."""
    text = str(_chain(error)[-1]).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return reason if len(reason) <= _LONGEST else reason[: _LONGEST - 4] + " ..."


def _origin(error: BaseException, model: nn.Module) -> str:
    """Operator and module in which the exporter gave up, as far as they are known.

    Its errors carry text only. The node it was translating, which knows its module, or else the module whose
    ``forward`` it was running, is in one of the frames the error came through; the innermost one counts.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    origin = ""
    for link in reversed(_chain(error)):
        traceback = link.__traceback__
        while traceback is not None:
            names = traceback.tb_frame.f_locals
            node, owner = names.get("node"), paths.get(id(names.get("self")))
            if isinstance(node, torch.fx.Node) and node.op == "call_function":
                modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
                return f"{node.target} in {modules[-1] if modules else _ROOT}"
            origin = origin if owner is None else f"forward of {owner or _ROOT}"
            traceback = traceback.tb_next
        if origin:
            break
    return origin
