"""A PyTorch model as an ONNX file: folded, optimised, checked, with a dynamic batch dimension.

The work is done by ``torch.onnx.export`` on top of ``torch.export``, whose optimizer (onnxscript) folds batch norms
into the convolutions before them. What is added here: names and shapes a user can rely on, folding where a weight is
shared, a full check, a file that is either whole or absent, silence, errors that say which module and operator stood
in the way, and a file free of the paths of the machine it was made on.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pdc_fx.directory import PRECISION_KEY
from pdc_fx.errors import ExportError, InputError
from pdc_fx.export.call import BATCH, Call, prepare
from pdc_fx.export.capture import capture, fixed_hint
from pdc_fx.export.fold import fold_batch_norms
from pdc_fx.export.half import to_half
from pdc_fx.export.inputs import call_arguments, on_device_of, tensors_by_path
from pdc_fx.export.store import require_writable, store
from pdc_fx.passes.compare import random_inputs
from pdc_fx.trace import Inputs, evaluating

DEFAULT_OPSET = 18
"""The opset the exporter's operator library is written in: no conversion, and every recent runtime reads it."""
OPSETS = range(18, 26)
"""The opsets the exporter reaches without the conversion routines of the C library, which fail on many models."""

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's metadata that holds the path of PyTorch modules it came from, as a Python list of strings."""

_KEPT_METADATA = (NAME_SCOPES, "namespace")


@dataclass(frozen=True)
class TensorSpec:
    """Name, ONNX element type and shape of an input or output; a dimension is a number or a symbol's name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxInfo:
    """What was written.

    ``nodes`` counts operators by type; ``exporter`` is ``torch.export``, or ``torchscript`` where only the older
    exporter knows an operator or its way past control flow is safe, and then ``notes`` says why. ``data`` is the file of
    the weights where they do not fit into the first; ``bytes`` counts both, ``sha256`` is that of ``path``. ``float32_nodes``
    are those that half precision would have overflowed.
    """

    path: Path
    bytes: int
    sha256: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: Mapping[str, int]
    exporter: str
    notes: tuple[str, ...] = ()
    data: Path | None = None
    float32_nodes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, for ``json.dumps``."""
        data = None if self.data is None else str(self.data)
        return dataclasses.asdict(self) | {"path": str(self.path), "data": data, "nodes": dict(self.nodes)}


def export_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    fp16: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OnnxInfo:
    """Write ``model`` in eval mode to an ONNX file. The model itself is left as it was.

    Args:
        model: any module, a ``torch.fx.GraphModule`` included.
        example_inputs: a tensor (``N x ...``) or a tuple of call arguments; other values than tensors become constants.
        path: the file; its directory must exist. An existing file is replaced only by a complete and checked one.
        opset: version of ONNX's operator set, one of :data:`OPSETS`.
        dynamic_batch: let the batch vary: the first dimension of every input that has the first input's batch size. Images
            in a list, as detection models take them, are fixed in number and size.
        dynamic_size: let height and width vary: the last two dimensions of every input of four or more.
        fp16: compute in half precision; inputs and outputs stay in single precision.
        input_names, output_names: names in the file, in order, instead of those of :mod:`pdc_fx.export.inputs`.
        metadata: strings to store in the file.

    Raises:
        InputError: an opset out of range, names that clash, no image whose size could vary, or a path that cannot be written.
        TraceError: the model does not run on the example inputs.
        ExportError: the model cannot be expressed in ONNX; the message names operator and module where they are known.

    >>> import tempfile, torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     info = export_onnx(model, torch.zeros(1, 3, 8, 8), Path(directory) / "model.onnx")
    >>> dict(info.nodes), info.outputs
    ({'Conv': 1, 'Relu': 1}, (TensorSpec(name='output', dtype='FLOAT', shape=('batch', 4, 6, 6)),))
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is out of range", hint=f"choose one from {OPSETS[0]} to {OPSETS[-1]}")
    target = require_writable(Path(path))
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    args = on_device_of(model, call_arguments(example_inputs))
    with evaluating(model):
        call = prepare(model, args, opset, dynamic_batch, dynamic_size, (input_names, output_names))
        captured = capture(call)
        fold_batch_norms(captured.graph)
        _compute_constant_outputs(captured.graph)
        _free_names(captured.graph, {*call.inputs, *call.outputs})
    proto = _complete(captured.graph, call)
    kept: tuple[str, ...] = ()
    if fp16:
        proto, kept = to_half(proto, _random_feed(call))
    _set_metadata(proto, {**(metadata or {}), **({PRECISION_KEY: "float16"} if fp16 else {})})
    nodes = Counter(node.op_type for node in proto.graph.node)
    stored = store(proto, target)
    return OnnxInfo(
        path=target,
        bytes=stored.bytes,
        sha256=stored.sha256,
        opset=opset,
        inputs=tuple(_spec(value) for value in proto.graph.input),
        outputs=tuple(_spec(value) for value in proto.graph.output),
        nodes=dict(sorted(nodes.items())),
        exporter=captured.exporter,
        notes=captured.notes,
        data=stored.data,
        float32_nodes=kept,
    )


# --------------------------------------------------------------------------------------------- the file's content


def _compute_constant_outputs(graph: Any) -> None:
    """Let a node give out each weight that the model returns as it is: an output of a graph must not be a weight itself."""
    import onnx_ir

    taken = set(graph.graph.initializers) | {value.name for node in graph.graph.all_nodes() for value in node.outputs}
    for position, value in enumerate(graph.graph.outputs):
        if value.is_initializer():
            node = onnx_ir.node("Identity", [value])
            (given,) = node.outputs
            given.shape, given.type = value.shape, value.type
            graph.graph.append(node)
            graph.graph.outputs[position] = given
            name = value.name
            graph.graph.initializers.pop(name)
            value.name, given.name = _unused(name, taken), name
            graph.graph.register_initializer(value)


def _free_names(graph: Any, names: set[str]) -> None:
    """Rename values inside the graph that have a name the user chose for an input or output: theirs mean nothing."""
    inner = [value for node in graph.graph.all_nodes() for value in node.outputs if not value.is_graph_output()]
    taken = {value.name for value in inner} | names
    for value in inner:
        if value.name in names:
            value.name = _unused(value.name, taken)


def _unused(name: str, taken: set[str]) -> str:
    """``name`` with a number, so that it is none of ``taken``; put among them."""
    found = next(numbered for number in count() if (numbered := f"{name}.{number}") not in taken)
    taken.add(found)
    return found


def _complete(graph: Any, call: Call) -> Any:
    """The ``onnx.ModelProto``, stripped of the exporter's stack traces, with the names and dimensions asked for."""
    import onnx_ir

    proto = onnx_ir.to_proto(graph)
    _strip(proto)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if versions.get("") != call.opset:
        raise ExportError(f"the exporter wrote opset {versions.get('')}, not {call.opset}", hint="choose another opset")
    _require_names("inputs", call.inputs, proto.graph.input)
    _require_names("outputs", call.outputs, proto.graph.output)
    clash = {*call.inputs, *call.outputs} & {tensor.name for tensor in proto.graph.initializer}
    if clash:
        raise InputError(
            "an input or output has the name of a weight", where=", ".join(clash), hint="name it otherwise"
        )
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, name in call.axes[value.name].items():
            if not dims[axis].dim_param:
                raise ExportError(
                    f"the model fixes its {name}{' size' if name == BATCH else ''}",
                    where=value.name,
                    hint=fixed_hint(call.axes),
                )
    return proto


def _random_feed(call: Call) -> dict[str, Any]:
    tensors = tensors_by_path("input", random_inputs(call.args, 0)).values()
    return {name: tensor.cpu().numpy() for name, tensor in zip(call.inputs, tensors, strict=True)}


def _set_metadata(proto: Any, metadata: Mapping[str, str]) -> None:
    import onnx

    onnx.helper.set_model_props(proto, dict(metadata))


def _require_names(kind: str, expected: Mapping[str, Tensor], values: Sequence[Any]) -> None:
    names = [value.name for value in values]
    if names != list(expected):
        raise ExportError(f"the exported model's {kind} are {names}, expected {list(expected)}")


def _strip(proto: Any) -> None:
    """Drop doc strings and metadata that hold source lines and paths; keep from which module each node came."""
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    pending = [proto.graph, *proto.functions]
    while pending:
        scope = pending.pop()
        for item in (scope, *scope.node, *scope.value_info, *getattr(scope, "initializer", ())):
            kept = [(prop.key, prop.value) for prop in item.metadata_props if prop.key in _KEPT_METADATA]
            del item.metadata_props[:]
            for key, value in kept:
                item.metadata_props.add(key=key, value=value)
            item.ClearField("doc_string")
        for value in (*scope.input, *scope.output):
            if not isinstance(value, str):
                del value.metadata_props[:]
        for attribute in (attribute for node in scope.node for attribute in node.attribute):
            pending += [attribute.g] if attribute.HasField("g") else []
            pending += attribute.graphs


def _spec(value: Any) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return TensorSpec(value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), shape)
