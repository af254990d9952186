"""From a PyTorch module to an optimised ONNX graph in memory: the two exporters of ``torch.onnx``, and their errors.

The exporter is ``torch.onnx.export`` on top of ``torch.export``. The older one, which traces to TorchScript, is asked
only for an operator the newer one has no translation for. It is never asked where *capturing* failed: it would record
the branch the example inputs take, and so write another function than the model's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdc_fx.errors import ExportError
from pdc_fx.export.inputs import batch_size, input_tensors, is_batched, other_values, output_tensors, resized, run_model

BATCH = "batch"
"""Name of the dynamic first dimension in the ONNX file."""

FIXED_BATCH_HINT = "if the model works for one batch size only, pass dynamic_batch=False"

_UNTRANSLATED = "No ONNX function found"
_STDERR = 2
_ROOT = "the model itself"


@dataclass(frozen=True)
class Call:
    """One export: the model, its arguments, and what its tensors are to be called; ``batch`` is None if it is fixed."""

    model: nn.Module
    args: tuple[Any, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    opset: int
    batch: int | None


@dataclass(frozen=True)
class Captured:
    """The optimised ``onnx_ir.Model``, the exporter that made it, and what the user should know about that."""

    graph: Any
    exporter: str
    notes: tuple[str, ...] = ()


def prepare(model: nn.Module, args: tuple[Any, ...], opset: int, dynamic_batch: bool) -> Call:
    """Run the model once, to learn what it returns. A batch of 1 is doubled: torch.export takes a 1 for a constant.

    Raises:
        TraceError: the model does not run on ``args``.
        ExportError: it returns no tensor, or something else beside tensors.
    """
    batch = batch_size(input_tensors(model, args)) if dynamic_batch else None
    if batch is not None and batch < 2:
        args = resized(args, 2, batch)
        batch = 2
    inputs = input_tensors(model, args)
    result = run_model(model, args)
    outputs = output_tensors(result, inputs)
    if not outputs:
        raise ExportError("the model returns no tensor", where=type(model).__name__)
    if others := other_values(result):
        what = f"the model returns values that are no tensors: {', '.join(others)}"
        raise ExportError(what, where=type(model).__name__, hint="return tensors, in tuples, lists or dicts")
    return Call(model, args, inputs, outputs, opset, batch)


def capture(call: Call) -> Captured:
    """Export to memory, by the newer exporter if it can.

    Raises:
        ExportError: neither exporter can; the message names operator and module where they are known.
    """
    from torch.onnx import OnnxExporterError

    expected = (OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError)
    try:
        return Captured(_by_torch_export(call), "torch.export")
    except expected as error:
        cause, reason, origin = error, _reason(error), _origin(error, call.model)
    failure = f"the model cannot be exported to ONNX: {reason}"
    if not reason.startswith(_UNTRANSLATED):
        raise ExportError(
            failure, where=origin, hint=FIXED_BATCH_HINT if "dynamic" in reason.lower() else ""
        ) from cause
    try:
        graph = _by_torchscript(call)
    except expected as error:
        raise ExportError(f"{failure}. The older exporter: {_reason(error)}", where=origin) from cause
    return Captured(graph, "torchscript", (f"{reason} [{origin}]",))


# --------------------------------------------------------------------------------------------- the two exporters


def _options(call: Call) -> dict[str, Any]:
    return {
        "input_names": list(call.inputs),
        "output_names": list(call.outputs),
        "opset_version": call.opset,
        "verbose": False,
    }


def _by_torch_export(call: Call) -> Any:
    with _quiet():
        program = torch.onnx.export(
            call.model, _positional(call.args), dynamo=True, dynamic_shapes=_dynamic_shapes(call), **_options(call)
        )
    assert program is not None  # typed as optional for the older exporter's sake
    _name_batch(program.model, call)
    return program.model


def _positional(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` for ``torch.onnx.export``, which takes a dict in the last place for keyword arguments."""
    return (*args, {}) if isinstance(args[-1], dict) else args


def _dynamic_shapes(call: Call) -> tuple[Any, ...] | None:
    """The ``dynamic_shapes`` of torch.export: the arguments' nest with an axis dict for each tensor, else None."""

    def axes(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {0: torch.export.Dim.DYNAMIC} if is_batched(value, call.batch) else {}
        if isinstance(value, Mapping):
            return {key: axes(child) for key, child in value.items()}
        return [axes(child) for child in value] if isinstance(value, (tuple, list)) else None

    return None if call.batch is None else tuple(axes(arg) for arg in call.args)


def _name_batch(graph: Any, call: Call) -> None:
    """Call the exporter's symbols for the batch (``s77``, as in ``2*s77``) by one name wherever they occur.

    Inputs that never meet have a symbol each; with one name for both, ``s77 + s40`` is ``2*batch``.
    """
    import onnx_ir

    batched = [value for value in graph.graph.inputs if is_batched(call.inputs[value.name], call.batch)]
    first = [value.shape[0] for value in batched]
    symbols = {dim.value for dim in first if isinstance(dim, onnx_ir.SymbolicDim) and dim.value}
    if not symbols:
        return
    pattern = re.compile(rf"\b({'|'.join(re.escape(symbol) for symbol in sorted(symbols))})\b")

    def renamed(dim: Any) -> Any:
        if not isinstance(dim, onnx_ir.SymbolicDim) or not dim.value or not pattern.search(dim.value):
            return dim
        dim = onnx_ir.SymbolicDim(pattern.sub(BATCH, dim.value))
        return dim.simplify() if len(symbols) > 1 else dim

    for value in (*graph.graph.inputs, *(output for node in graph.graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([renamed(dim) for dim in value.shape])


def _by_torchscript(call: Call) -> Any:
    import onnx
    import onnx_ir
    import onnxscript.optimizer

    buffer: Any = io.BytesIO()  # the older exporter takes one, whatever the annotation says
    tensors = {**call.inputs, **call.outputs}
    axes = {name: {0: BATCH} for name, tensor in tensors.items() if is_batched(tensor, call.batch)}
    with _without_graph_dump(), _quiet() as caught:
        torch.onnx.export(call.model, _positional(call.args), buffer, dynamo=False, dynamic_axes=axes, **_options(call))
        graph = onnx_ir.from_proto(onnx.load_from_string(buffer.getvalue()))
        onnxscript.optimizer.optimize_ir(graph)
    baked = [str(warning.message) for warning in caught if warning.category.__name__ == "TracerWarning"]
    if baked:
        raise RuntimeError(f"it would have fixed a value that depends on the input: {baked[0].splitlines()[0]}")
    return graph


# --------------------------------------------------------------------------------------------- silence


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Nothing printed, logged or warned about inside reaches the user; the warnings are handed over."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _without_graph_dump() -> Iterator[None]:
    """Keep the older exporter from printing its graph when it fails.

    It switches a log of PyTorch's C++ part on, whatever ``verbose`` says, and leaves it on. That log writes past
    Python's streams, so it is sent to the (unbuffered) standard error of the process and that to nowhere.
    """
    enabled = torch._C._jit_is_onnx_log_enabled()
    sys.stderr.flush()
    saved = os.dup(_STDERR)
    try:
        torch._C._jit_set_onnx_log_output_stream("stderr")
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(saved, _STDERR)
        os.close(saved)
        torch._C._jit_set_onnx_log_output_stream("stdout")
        torch._C._jit_set_onnx_log_enabled(enabled)


# --------------------------------------------------------------------------------------------- what went wrong, where


def _chain(error: BaseException) -> list[BaseException]:
    return [error, *(_chain(error.__cause__) if error.__cause__ is not None else [])]


def _reason(error: BaseException) -> str:
    """The first sentence of the innermost error: the outer ones only say in which step of the exporter it happened."""
    text = str(_chain(error)[-1]).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


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
