"""The older exporter of ``torch.onnx``, which traces to TorchScript: asked second, and believed only where that is safe.

A trace holds what the example inputs did. Where the program looks at a value, to branch or to count, the trace keeps the
answer, and the file computes another function than the model. The tracer warns of most such places; an index
(``range(n)``, ``list[n]``) it passes over in silence, so those are watched here. Any of them is refused, unless it stands
in a package of :data:`TRACEABLE`, whose authors wrote it to be traced.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pdc_fx.export.call import Call, options, positional
from pdc_fx.export.silence import quiet, without_graph_dump

TRACEABLE = ("torchvision",)
"""Packages that ask whether they are being traced and then take a way that holds for all images of one size."""

Place = tuple[str, str]
"""A source file, and what happens there."""


def by_torchscript(call: Call) -> tuple[Any, tuple[str, ...]]:
    """The optimised ``onnx_ir.Model``, and notes.

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
            axes[name] = {0: next(iter(axes.values()))[0]}
    with without_graph_dump(), quiet() as caught:
        with _Watch(caught) as watch:
            torch.onnx.export(
                call.model, positional(call.args), buffer, dynamo=False, dynamic_axes=axes, **options(call)
            )
        graph = onnx_ir.from_proto(onnx.load_from_string(buffer.getvalue()))
        onnxscript.optimizer.optimize_ir(graph)
    places = [*watch.places, *_warned(caught)]
    vouched = [package for package in TRACEABLE if any(_inside(file, package) for file, _ in places)]
    unsafe = [(file, text) for file, text in places if not any(_inside(file, package) for package in TRACEABLE)]
    if unsafe:
        raise RuntimeError(f"it would have fixed a value that depends on the input: {unsafe[0][1]}")
    if vouched and call.varies:
        raise RuntimeError(f"what {vouched[0]} does while it is traced holds for one size of the inputs only")
    return graph, tuple(f"traced, as {package} is written to be, for inputs of this size" for package in vouched)


def _warned(caught: Sequence[warnings.WarningMessage]) -> list[Place]:
    """The tracer's warnings, but those that the watch has seen."""
    found = [warning for warning in caught if warning.category.__name__ == "TracerWarning"]
    return [
        (warning.filename, str(warning.message).split(". ")[0]) for warning in found if warning.filename != __file__
    ]


def _inside(file: str, package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and any(
        Path(file).is_relative_to(folder) for folder in spec.submodule_search_locations or ()
    )


class _Watch(TorchFunctionMode):
    """Which source file uses a tensor as a Python value: as an index, or in a way that the tracer warns about.

    A warning raised below this mode bears the name of this file, so the caller's is looked up.
    """

    def __init__(self, caught: Sequence[warnings.WarningMessage]) -> None:
        super().__init__()
        self.caught = caught
        self.places: list[Place] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        file = sys._getframe(1).f_code.co_filename
        before = len(self.caught)
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__index__:
            self.places.append((file, "Using a tensor as a Python index"))
        found = [warning for warning in self.caught[before:] if warning.filename == __file__]
        self.places += [
            (file, str(warning.message).split(". ")[0])
            for warning in found
            if warning.category.__name__ == "TracerWarning"
        ]
        return result
