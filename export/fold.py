"""Batch norms behind convolutions, folded where the exporter's optimizer declines.

``norm(W * x + b) = (W s) * x + (b - mean) s + beta`` with ``s = gamma / sqrt(variance + eps)`` (onnxscript's
``FuseBatchNormInto*`` rules do this). They decline where ``W`` or ``b`` has another reader, as in a convolution that is
called twice; with a copy for each reader they apply.
"""

from __future__ import annotations

from typing import Any


def fold_batch_norms(graph: Any) -> None:
    """Fold what the optimizer leaves: batch norms behind convolutions that share their weight with other nodes.

    Each such convolution gets a weight of its own; then the optimizer's rules apply. A convolution with another reader
    than its batch norm is left alone: its own value is needed.

    Args:
        graph: an ``onnx_ir.Model``, changed in place.
    """
    shared = [
        (node, index, value)
        for node in _foldable(graph)
        for index, value in enumerate(node.inputs)
        if index > 0 and value is not None and value.is_initializer() and len(value.uses()) > 1
    ]
    for node, index, value in shared:
        _own_initializer(graph, node, index, value)
    if _foldable(graph):
        from onnxscript.rewriter import rewrite
        from onnxscript.rewriter.rules import common

        rules = [
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
        ]
        rewrite(graph, pattern_rewrite_rules=rules)


def _foldable(graph: Any) -> list[Any]:
    """Nodes whose only reader is a batch norm it could be folded into."""
    norms = [node for node in graph.graph if node.op_type == "BatchNormalization"]
    producers = [norm.inputs[0].producer() for norm in norms]
    return [
        node
        for node in producers
        if node is not None
        and node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and len(node.outputs[0].uses()) == 1
        and not node.outputs[0].is_graph_output()
    ]


def _own_initializer(graph: Any, node: Any, index: int, value: Any) -> None:
    import onnx_ir

    own = onnx_ir.Value(
        name=f"{value.name}.{node.name}", shape=value.shape, type=value.type, const_value=value.const_value
    )
    graph.graph.register_initializer(own)
    node.replace_input_with(index, own)
