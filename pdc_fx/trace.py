"""Record one real forward pass as a ``torch.fx`` graph of torch functions.

:class:`torch.overrides.TorchFunctionMode` shows every torch function with concrete values: through modules, subclasses,
functional calls, loops and data-dependent control flow. Parameters and buffers become ``get_attr`` nodes under their name in
the state dict, every function a ``call_function`` node with ``meta``:

- ``shape``: the shape of the result (a tuple; absent where the result is not one tensor),
- ``module``: path of the innermost module that was running,
- ``source``: file and line of the innermost frame outside torch and pdc-fx,
- ``aliased``: nodes whose storage an in-place function changed behind their back,
- ``constant``: for an integer buffer, its values (which positions a gather takes, say).

A tensor that no recorded function made (a plain attribute, or the result of code the mode cannot see) becomes a ``get_attr``
node with ``meta["unknown"] = True``; the analysis trusts nothing about it.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pdc_fx.errors import TraceError

Inputs = Tensor | tuple[Any, ...]

_OWN_ROOTS = tuple(
    f"{folder}/"
    for folder in (Path(torch.__file__).parent, Path(__file__).parent, Path(__file__).parent.parent / "passes")
)


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
    """

    graph: fx.Graph
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    unreached: tuple[str, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    sized: frozenset[tuple[fx.Node, int | None]]
    output: Any = field(repr=False)


def as_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple of positional arguments."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def function_name(target: object) -> str:
    """The name of a recorded function as a user would write it, e.g. ``torch.nn.functional.relu``."""
    name = resolve_name(target) if callable(target) else None
    return name or getattr(target, "__qualname__", None) or repr(target)


class _DoublePrecision(TorchFunctionMode):
    """Reads float32, where a forward pass asks for it by name, as float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def double(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        named = {key: double(value) for key, value in (kwargs or {}).items()}
        return (Tensor.double if func is Tensor.float else func)(*map(double, args), **named)


@contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """Keep a model in double precision in double precision, though its forward pass makes float32 tensors.

    Exactness is measured in float64, on models that were written for float32.
    """
    if not any(p.dtype is torch.float64 for p in model.parameters()):
        yield
        return
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _DoublePrecision():
            yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` in eval mode and without gradients, and back as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), own_precision(model):
            yield
    finally:
        for module in training:
            module.training = True


def record(model: nn.Module, example_inputs: Inputs) -> Recording:
    """Run ``model`` once in eval mode and record what it did.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, or a tuple of call arguments.

    Raises:
        TraceError: the model is no module, is scripted, lives on the meta device, or raises on these inputs.

    >>> recording = record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [n.name for n in recording.graph.nodes if n.op == "call_function"]
    ['conv2d', 'relu']
    """
    _refuse_unusable(model)
    return _record(model, model, as_arguments(example_inputs))


def record_graph_module(
    module: fx.GraphModule, example_inputs: Inputs, owner: nn.Module
) -> tuple[Recording, dict[fx.Node, fx.Node]]:
    """Record an fx graph as it is interpreted; also give, for each of its nodes, the recorded call that made its result.

    Tensors and modules are called by the names they have in ``owner``, the module that was traced.
    """
    found: dict[fx.Node, fx.Node] = {}

    class Watched(fx.Interpreter):
        recorder: Recorder

        def run_node(self, n: fx.Node) -> Any:
            self.recorder.source = n.meta.get("source")
            result = super().run_node(n)
            part = result[0] if isinstance(result, (tuple, list)) and result else result
            if isinstance(part, Tensor) and n.op != "output":
                node = self.recorder.node_of(part)
                if part is result or node.target is operator.getitem:
                    found[n] = node if part is result else node.all_input_nodes[0]
            return result

    interpreter = Watched(module)

    def run(*args: Any) -> Any:
        interpreter.recorder = Recorder.active[-1]
        return interpreter.run(*args)

    return _record(owner, run, as_arguments(example_inputs)), found


def _record(model: nn.Module, call: Callable[..., Any], args: tuple[Any, ...]) -> Recording:
    recorder = Recorder(model)
    with evaluating(model), recorder.module_paths(), recorder:
        mapped = recorder.placeholders(args)
        try:
            output = call(*args)
        except Exception as error:
            raise TraceError(
                f"the model raised {type(error).__name__} in its forward pass: {error}",
                where=_describe_inputs(args),
                hint="check the shape and dtype of the example inputs (--input on the command line)",
                calls=sum(node.op == "call_function" for node in recorder.graph.nodes),
            ) from error
        recorder.finish(output)
    del mapped
    shapes = {name: tuple(tensor.shape) for name, tensor in recorder.tensors.items()}
    parameters = tuple(name for name, tensor in recorder.tensors.items() if isinstance(tensor, nn.Parameter))
    inputs = tuple(
        (tuple(a.shape), str(a.dtype).removeprefix("torch.")) for a in tree_leaves(args) if isinstance(a, Tensor)
    )
    return Recording(
        recorder.graph, shapes, parameters, recorder.unreached(), inputs, frozenset(recorder.sized), output
    )


def _describe_inputs(args: tuple[Any, ...]) -> str:
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else type(a).__name__ for a in args)


def _refuse_unusable(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, got {type(model).__name__}", hint="pass the model itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a TorchScript module cannot be analysed", hint="pass the module it was scripted from")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise TraceError(
            "the model's tensors are on the meta device and hold no values",
            hint="use model.to_empty(...) and load weights",
        )


# Functions that read a tensor's type and sizes, never its values: they need no node.
_METHODS = """
size dim numel nelement stride element_size is_floating_point is_complex is_contiguous data_ptr storage_offset get_device type
untyped_storage __len__ ndimension is_signed __hash__ __repr__ requires_grad_ is_same_size is_pinned
"""
_PROPERTIES = """
shape dtype device ndim layout requires_grad is_cuda is_leaf is_sparse is_quantized is_meta is_mkldnn is_nested grad grad_fn names
is_xpu is_mps is_cpu itemsize nbytes
"""
_METADATA: set[Any] = {
    *(getattr(torch.Tensor, name) for name in _METHODS.split()),
    *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES.split() if hasattr(torch.Tensor, name)),
    *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_tensor),
}
_SIZES: set[Any] = {Tensor.size, Tensor.shape.__get__, Tensor.numel, Tensor.nelement, Tensor.__len__, torch.numel}  # type: ignore[attr-defined]


_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type(...),
)


class Recorder(TorchFunctionMode):
    """The mode that builds the graph. Tensors are remembered weakly, so the pass needs no more memory than a plain one."""

    active: list[Recorder] = []  # noqa: RUF012 - a stack shared on purpose

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.sized: set[tuple[fx.Node, int | None]] = set()
        self.source: str | None = None  # of what runs, where the frames do not tell
        self._model = model
        self._nodes: Any = WeakIdKeyDictionary()
        self._storages: dict[int, list[weakref.ref[Tensor]]] = {}
        self._attributes: dict[str, fx.Node] = {}
        self._names: Any = WeakIdKeyDictionary()
        self._module_stack: list[str] = [""]
        for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, tensor in named:
                if tensor not in self._names:
                    self._names[tensor] = name
                    self.tensors[name] = tensor

    def __enter__(self) -> Recorder:
        self.active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        self.active.pop()
        super().__exit__(*exc)  # type: ignore[no-untyped-call]

    @contextmanager
    def module_paths(self) -> Iterator[None]:
        """Keep ``_module_stack`` up to date while the model runs."""
        paths = {id(module): name for name, module in self._model.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self._module_stack.append(paths.get(id(module), self._module_stack[-1]))

        def leave(*_: Any) -> None:
            self._module_stack.pop()

        before = register_module_forward_pre_hook(enter)
        after = register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def placeholders(self, args: tuple[Any, ...]) -> list[fx.Node]:
        nodes = []
        for index, leaf in enumerate(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)):
            node = self.graph.placeholder(f"input_{index}")
            self._bind(leaf, node)
            nodes.append(node)
        return nodes

    def finish(self, output: Any) -> None:
        tensors = [leaf for leaf in _output_leaves(output) if isinstance(leaf, Tensor)]
        if not tensors:
            raise TraceError(f"the model returned no tensor but a {type(output).__name__}")
        self.graph.output(tuple(self.node_of(t) for t in tensors))

    def unreached(self) -> tuple[str, ...]:
        found = []
        for name, module in self._model.named_modules():
            own = [self._names[p] for p in module._parameters.values() if p is not None]
            if own and not any(tensor in self._attributes for tensor in own):
                found.append(name)
        return tuple(found)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            if func in _SIZES and (node := self._nodes.get(args[0])) is not None:
                dim = args[1] if len(args) > 1 else 0 if func is Tensor.__len__ else None
                self.sized.add((node, dim if isinstance(dim, int) else None))
            return func(*args, **kwargs)
        # arguments are looked up first: an in-place function will bind its target anew
        tensors: list[Tensor] = []
        node_args, node_kwargs = self._map(args, tensors), self._map(kwargs, tensors)
        versions = [_version(t) for t in tensors]
        result = func(*args, **kwargs)
        node = self.graph.create_node("call_function", func)
        # set here, since create_node first searches what it is given for symbolic sizes, and takes longer than all else
        node.args, node.kwargs = node_args, node_kwargs
        node.meta.update(module=self._module_stack[-1], source=self.source or user_frame())
        mutated = [t for t, version in zip(tensors, versions, strict=True) if _version(t) != version]
        if mutated:
            node.meta["aliased"] = [alias for t in mutated for alias in self._aliases(t)]
        # __setitem__ and its kind return nothing and change their first argument
        self._bind_result(mutated[0] if result is None and mutated else result, node)
        return result

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that made ``tensor``."""
        if (node := self._nodes.get(tensor)) is not None:
            return node  # type: ignore[no-any-return]
        name = self._names.get(tensor)
        target = name or f"unknown_{len(self._attributes)}"
        node = self.graph.create_node("get_attr", target, name=target.replace(".", "_"))
        node.meta["unknown"] = name is None
        if name is not None and not tensor.is_floating_point():
            node.meta["constant"] = tensor
        self._attributes[target] = node
        self._bind(tensor, node)
        return node

    def _bind_result(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._bind(result, node)
        elif isinstance(result, (tuple, list)):
            for index, item in enumerate(result):
                if isinstance(item, (Tensor, tuple, list)):
                    self._bind_result(item, self.graph.call_function(operator.getitem, (node, index)))

    def _bind(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["shape"] = tuple(tensor.shape)
        node.meta["floating"] = tensor.is_floating_point()
        self._nodes[tensor] = node
        if not tensor.is_sparse:
            self._storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(weakref.ref(tensor))

    def _aliases(self, changed: Tensor) -> list[fx.Node]:
        pointer = changed.untyped_storage().data_ptr()
        alive = [t for ref in self._storages.get(pointer, ()) if (t := ref()) is not None]
        self._storages[pointer] = [weakref.ref(t) for t in alive]
        others = {self._nodes[t]: None for t in alive if t is not changed and t.untyped_storage().data_ptr() == pointer}
        return list(others)

    def _map(self, value: Any, tensors: list[Tensor]) -> Any:
        """Tensors to nodes (collected in ``tensors``), everything else to what an fx graph can hold."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            tensors.append(value)
            return self.node_of(value)
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, (tuple, list)):
            mapped = [self._map(item, tensors) for item in value]
            return mapped if isinstance(value, list) else tuple(mapped)
        if isinstance(value, dict):
            return {key: self._map(item, tensors) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._map(part, tensors) for part in (value.start, value.stop, value.step)))
        return value if isinstance(value, _PLAIN) else repr(value)


def _output_leaves(output: Any) -> list[Any]:
    """The leaves of an output, also of objects that hold tensors as attributes."""
    leaves: list[Any] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__"):
            leaves.append(leaf)
        else:
            leaves.extend(tree_leaves(vars(leaf)))
    return leaves


def _version(tensor: Tensor) -> int:
    """A counter that every in-place change raises."""
    return -1 if tensor.is_inference() else tensor._version


def user_frame() -> str:
    """File and line of the innermost frame outside torch and pdc-fx."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_ROOTS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
