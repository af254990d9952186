"""Times of single layers in ONNX Runtime, and of whole networks in the same way.

Layers with the same input are the nodes of one small model, which runs a few times with ONNX Runtime's profiler on. What a node takes is
then known without what surrounds it: a layer that is alone in a model also has its input and output rearranged into blocks and back,
which in a network happens once for many layers. The least of all runs counts, node by node, for whatever else a machine does only adds;
what a network takes is the sum over its nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdc_fx.errors import InputError
from pdc_fx.export.session import make_session, run_session
from pdc_fx.export.timing.profiling import recorded
from pdc_fx.files import scratch_folder
from pdc_fx.passes.latency import Layer, Shape

RUNS, WARMUP = 12, 2
_BYTES = 2**28
"""The most that inputs, weights and outputs of one model hold, unless a single layer holds more."""
_OPSET, _IR_VERSION = 18, 10
_LAYER = re.compile(r"layer(\d+)_")


def time_layers(
    layers: Mapping[str, Layer],
    *,
    provider: str,
    threads: int,
    runs: int = RUNS,
) -> dict[str, float]:
    """Nanoseconds of each layer, by its key.

    Args:
        runs: timed runs of each.

    Raises:
        InputError: the provider's profile does not tell how long a node runs.

    >>> times = time_layers({"a": Layer("linear", (4, 8), 2)}, provider="cpu", threads=1, runs=2)
    >>> times["a"] >= 0
    True
    """
    if provider != "cpu":
        raise InputError(
            f"layers cannot be timed one by one on {provider}: its profile tells when work was handed over, not how long it took",
            hint="give --flops-reduction and --round-to auto; or take --provider cpu",
        )
    found: dict[str, float] = {}
    for part in _parts(layers):
        found.update(_timed(part, provider, threads, runs))
    return found


def _parts(layers: Mapping[str, Layer]) -> Iterator[dict[str, Layer]]:
    """The layers in parts that fit into memory, those with the same input side by side."""
    part: dict[str, Layer] = {}
    size = 0
    for key, layer in sorted(layers.items(), key=lambda item: (_input_shape(item[1]), item[0])):
        needed = 4 * (prod(layer.weight) + prod(_input_shape(layer)) + _written(layer))
        if part and size + needed > _BYTES:
            yield part
            part, size = {}, 0
        part[key] = layer
        size += needed
    if part:
        yield part


def _input_shape(layer: Layer) -> Shape:
    return (layer.batch, layer.inputs, *layer.space)


def _written(layer: Layer) -> int:
    """Entries of the output, about."""
    strides = prod(layer.stride)
    space = prod(layer.space) * strides if layer.kind == "conv_transpose" else prod(layer.space) // max(strides, 1)
    return layer.batch * layer.outputs * max(space, 1)


def time_network(path: Path, *, provider: str, threads: int) -> float:
    """Nanoseconds of an ONNX file whose shapes are fixed: the sum over its nodes."""
    return sum(_profiled(path, provider, threads, RUNS).values())


def _timed(layers: Mapping[str, Layer], provider: str, threads: int, runs: int) -> dict[str, float]:
    inputs = {_input_shape(layer): f"input{i}" for i, layer in enumerate(layers.values())}
    times = _profiled(_model(list(layers.values()), inputs), provider, threads, runs)
    found = {int(match[1]): time for name, time in times.items() if (match := _LAYER.match(name))}
    return {key: found[number] for number, key in enumerate(layers)}


def _profiled(model: Path | bytes, provider: str, threads: int, runs: int) -> dict[str, float]:
    """Node -> the least nanoseconds of all runs but those that warm up."""
    times: dict[str, list[float]] = {}
    with scratch_folder() as folder:
        session = make_session(model, provider=provider, threads=threads, profile=folder / "profile")
        feed = {value.name: _noise(tuple(value.shape)) for value in session.get_inputs()}
        for _ in range(WARMUP + runs):
            run_session(session, feed)
        events = recorded(session)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(f"{event['name']} {event['args']['node_index']}", []).append(1e3 * event["dur"])
    return {name: min(values[WARMUP:]) for name, values in times.items()}


def _model(layers: Sequence[Layer], inputs: Mapping[Shape, str]) -> bytes:
    """An ONNX model with one node for each layer, called ``layer<number>``."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, outputs = [], [], []
    for number, layer in enumerate(layers):
        name = f"layer{number}"
        operator, attributes = _node(layer)
        read = [inputs[_input_shape(layer)], f"{name}_w"]
        nodes.append(helper.make_node(operator, read, [name], name=name, **attributes))
        weights.append(numpy_helper.from_array(_noise(layer.weight), f"{name}_w"))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for shape, name in inputs.items()]
    graph = helper.make_graph(nodes, "layers", given, outputs, weights)
    opset = helper.make_opsetid("", _OPSET)
    data: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION).SerializeToString()
    return data


def _node(layer: Layer) -> tuple[str, dict[str, Any]]:
    if layer.kind == "linear":
        return "Gemm", {"transB": 1}
    attributes = {
        "kernel_shape": layer.weight[2:],
        "strides": layer.stride,
        "pads": layer.pads,
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    if layer.kind == "conv_transpose":
        return "ConvTranspose", {**attributes, "output_padding": layer.output_padding}
    return "Conv", attributes


def _noise(shape: Shape) -> NDArray[np.float32]:
    """Small numbers, none of them zero or denormal; a block of them again and again."""
    block = np.random.default_rng(0).uniform(0.01, 0.1, 4096).astype(np.float32)
    return np.resize(block, shape)
