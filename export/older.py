"""The older exporter of ``torch.onnx``, which traces to TorchScript: asked second, and believed only where that is safe.

A trace holds what the example inputs did. Where the program looks at a value, to branch or to count, the trace keeps the
answer, and the file computes another function than the model. The tracer warns of most such places; an index
(``range(n)``, ``list[n]``) it passes over in silence, so those are watched here. Any of them is refused, unless it stands
in a package of :data:`TRACEABLE`, whose authors wrote it to be traced.
"""

from __future__ import annotations

import functools
import io
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pdc_fx.export.call import BATCH, Call, options, positional
from pdc_fx.export.silence import quiet, without_graph_dump

TRACEABLE = ("torchvision",)
"""Packages that ask whether they are being traced and then take a way that holds for all images of one size."""

_CONSTANT = "results are registered as constants"

Place = tuple[str, str]
"""A source file, and what happens there."""


def by_torchscript(call: Call, *, on_values: bool) -> tuple[Any, tuple[str, ...]]:
    """The optimised ``onnx_ir.Model``, and notes.

    Args:
        on_values: the program is known to look at values. Without that, what it uses as an index is a size.

    Raises:
        RuntimeError: the trace would hold a value that depends on the input.
    """
    import onnx
    import onnx_ir
    import onnxscript.optimizer

    buffer: Any = io.BytesIO()  # the older exporter takes one, whatever the annotation says
    axes = {name: dict(varying) for name, varying in call.axes.items() if varying}
    for name, tensor in call.outputs.items():
        if tensor.dim() and tensor.shape[0] == call.batch:
            axes[name] = {0: BATCH}
    with without_graph_dump(), quiet() as caught:
        with _Watch(caught) as watch:
            torch.onnx.export(
                call.model, positional(call.args), buffer, dynamo=False, dynamic_axes=axes, **options(call)
            )
        graph = onnx_ir.from_proto(onnx.load_from_string(buffer.getvalue()))
        onnxscript.optimizer.optimize_ir(graph)
    _adopt_constants(graph.graph)
    indices = watch.indices if on_values else []
    places = [
        *indices,
        *watch.places,
        *(_place(warning) for warning in _of_tracer(caught) if id(warning) not in watch.seen),
    ]
    vouched = [package for package in TRACEABLE if any(_inside(file, package) for file, _ in places)]
    unsafe = [place for place in places if not _safe(*place)]
    if unsafe:
        raise RuntimeError(f"it would have fixed a value that depends on the input: {unsafe[0][1]}")
    if vouched and call.varies:
        raise RuntimeError(f"what {vouched[0]} does while it is traced holds for one size of the inputs only")
    return graph, tuple(f"traced, as {package} is written to be, for inputs of this size" for package in vouched)


def _adopt_constants(graph: Any) -> None:
    """Two constants of one name: the optimizer renames the second and leaves it out of the graph's initializers."""
    for node in graph:
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None:
                continue
            if not (value.is_graph_input() or value.is_initializer()):
                graph.register_initializer(value)


def _of_tracer(caught: Sequence[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    return [warning for warning in caught if warning.category.__name__ == "TracerWarning"]


def _place(warning: warnings.WarningMessage, file: str | None = None) -> Place:
    return file or warning.filename, str(warning.message).split(". ")[0]


def _safe(file: str, text: str) -> bool:
    """Torch's own functions make constants of their numbers; of a tensor among them the tracer warns once more."""
    return any(_inside(file, package) for package in TRACEABLE) or (_inside(file, "torch") and _CONSTANT in text)


def _caller(frame: FrameType) -> str:
    """The source file from which torch was called."""
    while frame.f_back is not None and _inside(frame.f_code.co_filename, "torch"):
        frame = frame.f_back
    return frame.f_code.co_filename


@functools.cache
def _inside(file: str, package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and any(
        Path(file).is_relative_to(folder) for folder in spec.submodule_search_locations or ()
    )


class _Watch(TorchFunctionMode):
    """Which source file uses a tensor as a Python value: as an index, or in a way that the tracer warns about.

    A warning raised below this mode bears the name of this file or of one of torch's, so whoever called torch is looked up.
    """

    def __init__(self, caught: Sequence[warnings.WarningMessage]) -> None:
        super().__init__()
        self.caught = caught
        self.places: list[Place] = []
        self.indices: list[Place] = []
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = len(self.caught)
        result = func(*args, **(kwargs or {}))
        found = _of_tracer(self.caught[before:])
        if found or func is Tensor.__index__:
            caller = _caller(sys._getframe(1))
            self.seen.update(id(warning) for warning in found)
            self.places += [_place(warning, _place_of(warning.filename, caller)) for warning in found]
            if func is Tensor.__index__:
                self.indices.append((caller, "Using a tensor as a Python index"))
        return result


def _place_of(file: str, caller: str) -> str:
    return caller if file == __file__ or _inside(file, "torch") else file
