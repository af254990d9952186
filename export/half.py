"""An ONNX model in half precision, its inputs and outputs in single precision.

The conversion is that of ONNX Runtime, which keeps operators without a kernel in half precision as they are. What is added
here is a check of magnitudes: half precision ends at 65504. A weight beyond that is refused, and a node that computes or
reads values near it on random inputs is kept in single precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdc_fx.errors import ExportError
from pdc_fx.export.silence import quiet
from pdc_fx.export.values import node_values

LARGEST = 65504.0
"""The largest number in half precision."""
MARGIN = 8.0
"""Real inputs may give larger values than random ones: by this factor at most."""
PRECISION = "pdc_fx.precision"
"""Key of the file's metadata that says ``float16``."""


def to_half(proto: Any, feed: dict[str, NDArray[Any]]) -> tuple[Any, tuple[str, ...]]:
    """``proto`` (an ``onnx.ModelProto``) in half precision, and the names of the nodes kept in single precision.

    Args:
        feed: inputs to take the magnitudes on.

    Raises:
        ExportError: a weight is too large, or the conversion fails.
    """
    _require_weights(proto)
    kept = _large_nodes(proto, feed)
    from onnxruntime.transformers import float16

    try:
        with quiet():
            half = float16.convert_float_to_float16(proto, keep_io_types=True, node_block_list=list(kept))
    except Exception as error:  # the converter's errors have no common base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"the model cannot be converted to half precision: {reason}", hint="export it in float32, without --fp16"
        ) from error
    return half, kept


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
