"""One forward pass as a frozen record: of a module, or of a symbolic graph as it is interpreted."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pdc_fx.errors import ArtifactError, TraceError
from pdc_fx.trace.forward import Inputs, as_arguments, described, failed, in_mode, looking_at
from pdc_fx.trace.preconditions import require_usable, require_values
from pdc_fx.trace.recorder import Recorder
from pdc_fx.trace.storage import overlapping, unequal


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        graph: torch functions in the order they ran.
        shapes: shape of every parameter and buffer, by its name in the state dict (shared tensors under their first name).
        parameters: names of the parameters among them.
        unreached: modules of whose own parameters none was used.
        inputs: shape and dtype of the tensors among the example inputs.
        sized: the tensors of which the model's own code read sizes, and along which axis (None for all of them).
        output: what the forward pass returned.
        overlapping: tensors that share memory with others or with themselves -> the reason why they cannot change.
        unequal: masks and counts -> the axes along which they differ, of which there is no mean.
    """

    graph: fx.Graph
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    unreached: tuple[str, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    sized: frozenset[tuple[fx.Node, int | None]]
    output: Any = field(repr=False)
    overlapping: Mapping[str, str] = field(default_factory=dict)
    unequal: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def zeros_of(inputs: Sequence[tuple[tuple[int, ...], str]], device: torch.device | None = None) -> tuple[Tensor, ...]:
    """Zeros of the shapes and dtypes that a plan was made on: of :attr:`Recording.inputs`.

    Raises:
        ArtifactError: there is no such dtype, or no memory for such a shape.

    >>> [(tuple(x.shape), x.dtype) for x in zeros_of([((1, 3, 8, 8), "float32")])]
    [((1, 3, 8, 8), torch.float32)]
    """
    tensors = []
    for shape, name in inputs:
        dtype = getattr(torch, str(name), None)
        try:
            if not isinstance(dtype, torch.dtype):
                raise ValueError("there is no such dtype")
            tensors.append(torch.zeros(shape, dtype=dtype, device=device))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the plan's example input cannot be made: {str(error).splitlines()[0]}", where=f"{shape}, {name}"
            ) from error
    return tuple(tensors)


def record(
    model: nn.Module, example_inputs: Inputs, called: Callable[[Recorder], Callable[..., Any]] | None = None
) -> Recording:
    """Run ``model`` once in eval mode and record what it did.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, or a tuple of call arguments.
        called: gives what is called with them, for who wants to ask the recorder meanwhile; the model itself by default.

    Raises:
        TraceError: the model is no module, is scripted, lives on the meta device, or raises on these inputs.

    >>> import torch
    >>> recording = record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [n.name for n in recording.graph.nodes if n.op == "call_function"]
    ['conv2d', 'relu']
    """
    require_usable(model)
    _require_same_weights(model)
    return _record(model, called or (lambda _: model), as_arguments(example_inputs))


def _require_same_weights(model: nn.Module) -> None:
    """Raise :class:`TraceError` where eval mode changes weights (an adapter is merged): those that are looked at would not be trained."""
    own = [m for m in model.modules() if m.training and type(m).train is not nn.Module.train]
    before = [
        (m, name, tensor, tensor.detach().clone()) for m in own for name, tensor in m.named_parameters(recurse=False)
    ]
    if not before:
        return
    with in_mode(model, training=False):
        changed = [(m, name) for m, name, tensor, old in before if not torch.equal(tensor, old)]
    if changed:
        raise TraceError(
            f"{type(changed[0][0]).__name__} changes its '{changed[0][1]}' when it is put in eval mode",
            hint="merge adapters into the weights first, for good, or call model.eval() and leave it there",
        )


def record_graph_module(
    module: fx.GraphModule, example_inputs: Inputs, owner: nn.Module
) -> tuple[Recording, dict[fx.Node, fx.Node]]:
    """Record an fx graph as it is interpreted; also give, for each of its nodes, the recorded call that made its result.

    Tensors and modules are called by the names they have in ``owner``, the module that was traced. ``meta["changes"]`` of a node of the
    graph tells whether it changed a tensor in place.
    """
    found: dict[fx.Node, fx.Node] = {}

    class Watched(fx.Interpreter):
        running = ""

        def __init__(self, recorder: Recorder) -> None:
            super().__init__(module)
            self.recorder = recorder

        def run_node(self, n: fx.Node) -> Any:
            self.recorder.source, Watched.running = n.meta.get("source"), n.name
            before = self.recorder.changes
            result = super().run_node(n)
            n.meta["changes"] = self.recorder.changes > before
            part = result[0] if isinstance(result, (tuple, list)) and result else result
            if isinstance(part, Tensor) and n.op != "output":
                node = self.recorder.node_of(part)
                of_call = (
                    node.target is operator.getitem and n.target is not operator.getitem
                )  # and no slice of what it gave
                if part is result or of_call:
                    found[n] = node if part is result else node.all_input_nodes[0]
            return result

    try:
        return _record(owner, lambda recorder: Watched(recorder).run, as_arguments(example_inputs), module), found
    except TraceError as error:
        error.node = Watched.running
        raise


def _record(
    model: nn.Module,
    called: Callable[[Recorder], Callable[..., Any]],
    args: tuple[Any, ...],
    program: fx.GraphModule | None = None,
) -> Recording:
    require_values(args)
    recorder = Recorder(model)
    with (
        looking_at(model, *args) as args,
        recorder.module_paths(model, program),
        recorder.leaves(model, program),
        recorder,
    ):
        with recorder.unguarded():
            recorder.placeholders(args)
        try:
            output = called(recorder)(*args)
        except (Exception, SystemExit) as error:
            done = sum(node.op == "call_function" for node in recorder.graph.nodes)
            raise failed(model, error, where=described(args), calls=done) from error
        with recorder.unguarded():
            recorder.finish(output)
    shapes = {name: tuple(tensor.shape) for name, tensor in recorder.tensors.items()}
    parameters = tuple(name for name, tensor in recorder.tensors.items() if isinstance(tensor, nn.Parameter))
    inputs = tuple(
        (tuple(a.shape), str(a.dtype).removeprefix("torch.")) for a in tree_leaves(args) if isinstance(a, Tensor)
    )
    return Recording(
        recorder.graph,
        shapes,
        parameters,
        recorder.unreached(),
        inputs,
        frozenset(recorder.sized),
        output,
        overlapping(recorder.tensors),
        unequal(recorder.tensors),
    )
