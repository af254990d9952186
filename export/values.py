"""The values of all nodes of an ONNX model."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pdc_fx.export.session import make_session, run_session


def node_values(proto: Any, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The values of all node outputs of an ONNX model (of its main graph) by name, without graph optimisation.

    Raises:
        ArtifactError, InputError: ONNX Runtime cannot load the model, or run it on these values.
    """
    import onnx

    everything = onnx.ModelProto()
    everything.CopyFrom(proto)
    inferred = onnx.shape_inference.infer_shapes(everything).graph
    typed = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    names = [name for node in proto.graph.node for name in node.output if name]
    del everything.graph.output[:]
    everything.graph.output.extend(typed.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    return run_session(make_session(everything.SerializeToString(), optimize=False), feed)
