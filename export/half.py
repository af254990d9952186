"""An ONNX model in half precision, its inputs and outputs in single precision.

The operators of :data:`HALF` compute in half precision, all others in single precision, and a value that crosses over is
cast once, behind its producer. Half precision ends at 65504. So a weight beyond that is refused, and a node that computes
or reads values near it on random inputs stays in single precision, too.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdc_fx.errors import ExportError
from pdc_fx.export.store import EXTERNAL_ABOVE
from pdc_fx.export.values import node_values

LARGEST = 65504.0
"""The largest number in half precision."""
MARGIN = 8.0
"""Real inputs may give larger values than random ones: by this factor at most."""

HALF = frozenset(
    re.findall(
        r"\w+",
        """
        Conv ConvTranspose Gemm MatMul Relu LeakyRelu PRelu Elu Selu Sigmoid HardSigmoid HardSwish Tanh Gelu Mish Clip
        Add Sub Mul Div Neg Abs Max Min MaxPool AveragePool GlobalMaxPool GlobalAveragePool ReduceMean ReduceMax
        BatchNormalization InstanceNormalization GroupNormalization LayerNormalization Softmax LogSoftmax
        Concat Split Reshape Flatten Transpose Squeeze Unsqueeze Expand Slice Gather Pad Tile Identity DepthToSpace
        SpaceToDepth Where Resize
        """,
    )
)
"""Operators that are safe in half precision: sums of products, bounded or linear functions, movement of data."""

_FIRST_INPUT_ONLY = frozenset({"Resize"})  # its other inputs are factors, in single precision


def to_half(proto: Any, feed: dict[str, NDArray[Any]]) -> tuple[Any, tuple[str, ...]]:
    """``proto`` (an ``onnx.ModelProto``) in half precision, and the nodes kept out of it for the size of their values.

    Args:
        feed: inputs to take the magnitudes on.

    Raises:
        ExportError: a weight is too large, or all of them together are.
    """
    import onnx
    import onnx_ir

    if proto.ByteSize() > EXTERNAL_ABOVE:
        raise ExportError("the model is too large to be converted to half precision", hint="export it in float32")
    _require_weights(proto)
    large = _large_nodes(proto, feed)
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    graph = model.graph
    safe = [node for node in graph if node.op_type in HALF and not node.domain]
    half = {node for node in safe if node.name not in large}
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.dtype == onnx_ir.DataType.FLOAT:
            _convert(graph, value, half)
    return onnx_ir.to_proto(model), tuple(node.name for node in safe if node not in half and node.name)


def _convert(graph: Any, value: Any, half: set[Any]) -> None:
    """Give ``value`` the precision of its producer, and its readers that of theirs."""
    import onnx_ir

    halves: list[tuple[Any, int]] = []
    others: list[tuple[Any, int]] = []
    for node, index in value.uses():
        wants_half = node in half and (index == 0 or node.op_type not in _FIRST_INPUT_ONLY)
        (halves if wants_half else others).append((node, index))
    if value.is_initializer() and halves and not others and not value.is_graph_output():
        content = value.const_value.numpy().astype(np.float16)
        value.const_value = onnx_ir.tensor(content, name=value.name)
        value.dtype = onnx_ir.DataType.FLOAT16
        return
    made_half = value.producer() in half
    readers = others if made_half else halves
    returned = made_half and value.is_graph_output()
    if made_half:
        value.dtype = onnx_ir.DataType.FLOAT16
    if not readers and not returned:
        return
    name, target = value.name, onnx_ir.DataType.FLOAT if made_half else onnx_ir.DataType.FLOAT16
    cast = onnx_ir.node("Cast", [value], {"to": target}, name=f"{name}.cast")
    result = cast.outputs[0]
    result.dtype, result.shape = target, value.shape
    result.name = f"{name}.{'float32' if made_half else 'float16'}"
    if returned:
        value.name, result.name = f"{name}.float16", name  # the output keeps its name
        for position, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[position] = result
    for node, index in readers:
        node.replace_input_with(index, result)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)


def _require_weights(proto: Any) -> None:
    import onnx

    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            largest = float(np.abs(values).max()) if values.size else 0.0
            if not largest <= LARGEST:
                raise ExportError(
                    f"a weight overflows in half precision, which ends at {LARGEST:g}",
                    where=f"{tensor.name}: {largest:.3g}",
                    hint="export it in float32, without --fp16",
                )


def _large_nodes(proto: Any, feed: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """Nodes that read or compute values above the largest number over the margin."""
    values = {**feed, **node_values(proto, feed)}
    large = {name for name, value in values.items() if value.dtype.kind == "f" and _magnitude(value) > LARGEST / MARGIN}
    return tuple(node.name for node in proto.graph.node if large.intersection((*node.input, *node.output)))


def _magnitude(value: NDArray[Any]) -> float:
    return float(np.abs(value).max()) if value.size else 0.0
