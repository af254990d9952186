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

Code that the mode cannot see (TorchScript, C++ extensions, dlpack) must not read channels unnoticed. A dispatch-level guard looks at
the operators that run while no recorded function does; a recorded tensor that goes into one is given to a ``call_function`` node
with ``meta["bypass"] = True``, for which no rule can speak. The same goes for a tensor that appears from nowhere in the memory of
a known one.

A module whose class has a rule is a *leaf*: one node with the class as its target stands for its call, with ``meta["leaf"]``, the module,
and ``meta["own"]``, the nodes of its parameters and buffers by the names they have in it.
"""

from __future__ import annotations

import operator
import sys
import warnings
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pdc_fx.errors import TraceError

Inputs = Tensor | tuple[Any, ...]

_OWN_ROOTS = tuple(
    f"{folder}/"
    for folder in (Path(torch.__file__).parent, Path(__file__).parent, Path(__file__).parent.parent / "passes")
)


LEAVES: set[type[nn.Module]] = set()
"""Module classes that are recorded as one call each; a rule for such a class enters it here."""


def leaf_class(module: nn.Module) -> type[nn.Module] | None:
    """The class under which ``module`` is a leaf, or None. A subclass with a forward of its own is another operator."""
    if LEAVES:
        for kind in type(module).__mro__:
            if kind in LEAVES:
                return kind
            if "forward" in vars(kind):
                return None
    return None


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
    """

    graph: fx.Graph
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    unreached: tuple[str, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    sized: frozenset[tuple[fx.Node, int | None]]
    output: Any = field(repr=False)
    overlapping: Mapping[str, str] = field(default_factory=dict)


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
        with torch.no_grad(), own_precision(model), _eagerly():
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
    require_usable(model)
    return _record(model, model, as_arguments(example_inputs))


def record_graph_module(
    module: fx.GraphModule, example_inputs: Inputs, owner: nn.Module
) -> tuple[Recording, dict[fx.Node, fx.Node]]:
    """Record an fx graph as it is interpreted; also give, for each of its nodes, the recorded call that made its result.

    Tensors and modules are called by the names they have in ``owner``, the module that was traced. ``meta["changes"]`` of a node of the
    graph tells whether it changed a tensor in place.
    """
    found: dict[fx.Node, fx.Node] = {}

    class Watched(fx.Interpreter):
        recorder: Recorder
        running = ""

        def run_node(self, n: fx.Node) -> Any:
            self.recorder.source, self.running = n.meta.get("source"), n.name
            before = self.recorder.changes
            result = super().run_node(n)
            n.meta["changes"] = self.recorder.changes > before
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

    try:
        return _record(owner, run, as_arguments(example_inputs), module), found
    except TraceError as error:
        error.node = interpreter.running
        raise


def _record(
    model: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], program: fx.GraphModule | None = None
) -> Recording:
    require_values(args)
    recorder = Recorder(model)
    with evaluating(model), recorder.module_paths(model, program), recorder.leaves(model, program), recorder:
        with recorder.unguarded():
            mapped = recorder.placeholders(args)
        try:
            output = call(*args)
        except Exception as error:
            raise TraceError(
                f"the model raised {type(error).__name__} in its forward pass: {error}",
                where=_describe_inputs(args),
                hint=way_out(error),
                calls=sum(node.op == "call_function" for node in recorder.graph.nodes),
            ) from error
        with recorder.unguarded():
            recorder.finish(output)
    del mapped
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
    )


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run what was compiled with ``torch.compile`` as the Python it was compiled from."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*when there are global hooks on modules")
        yield


def overlapping(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors of which one cannot change without another one, or one entry without another, and why.

    >>> weight = torch.zeros(8, 3)
    >>> sorted(overlapping({"a": weight, "b": weight[:4], "c": torch.zeros(2), "d": torch.zeros(1).expand(8)}))
    ['a', 'b', 'd']
    """
    found: dict[str, str] = {}
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in reversed(list(tensors.items()))}.values():
        pointer = _pointer(tensor)
        if not pointer or not tensor.numel():
            continue
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if reach + 1 < tensor.numel():
            found[name] = f"several entries of '{name}' are one number in memory (an expanded tensor)"
        start = int(tensor.storage_offset())
        by_storage.setdefault(pointer, []).append((start, start + int(reach), name))
    for spans in by_storage.values():
        spans.sort()
        for index, (_, stop, name) in enumerate(spans):
            for start, _, other in spans[index + 1 :]:
                if start <= stop:
                    found.setdefault(other, f"'{other}' shares memory with '{name}', without being the same tensor")
                    found.setdefault(name, f"'{name}' shares memory with '{other}', without being the same tensor")
    return found


def _pointer(tensor: Tensor) -> int:
    """Where the memory of a tensor lies; 0 where it has none of its own to look at."""
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        try:
            return tensor.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # sparse, opaque and fake tensors
            return 0


def way_out(error: Exception) -> str:
    """What to look at where a forward pass raised ``error``."""
    if isinstance(error, TypeError) and "argument" in str(error):
        return "example_inputs is one tensor, or a tuple with every argument of forward()"
    return "check the shape and dtype of the example inputs (--input on the command line)"


def _describe_inputs(args: tuple[Any, ...]) -> str:
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else type(a).__name__ for a in args)


def require_usable(model: object) -> None:
    """Raise :class:`TraceError` for what is no module that can run here and be changed; the message says what to pass instead."""
    if not isinstance(model, nn.Module):
        hint = "make an instance of it" if isinstance(model, type) else "pass the module itself"
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TraceError(f"expected a torch.nn.Module, got {name}", hint=hint)
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a TorchScript module cannot be analysed", hint="pass the module it was scripted from")
    if isinstance(model, fx.GraphModule) and "eval" in vars(model):  # torch.export forbids it there
        raise TraceError("a program from torch.export cannot be analysed", hint="pass the module it was exported from")
    for name, module in model.named_modules():
        if ".nn.quantized" in type(module).__module__ or ".nn.intrinsic.quantized" in type(module).__module__:
            raise TraceError(
                "a quantized model cannot be analysed: its weights are packed",
                where=f"'{name}': {type(module).__name__}",
                hint="compress the float model, then quantize the result",
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise TraceError(
                "the model is lazy: it takes its shapes from the first input",
                where=f"'{name}'",
                hint="call it once, then load its weights",
            )
        if tensor.is_meta:
            raise TraceError(
                "the model's tensors are on the meta device and hold no values",
                where=f"'{name}'",
                hint="use model.to_empty(...) and load weights",
            )


def require_values(args: tuple[Any, ...]) -> None:
    """Raise :class:`TraceError` for example inputs that hold no numbers."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    lacking = any(t.is_meta for t in tensors)
    if lacking or (tensors and not any(t.numel() for t in tensors)):
        raise TraceError(
            "an example input is on the meta device and holds no values" if lacking else "the example input is empty",
            where=_describe_inputs(args),
            hint="give a tensor as in use, torch.randn(...) say",
        )


# Functions that read a tensor's type and sizes, never its values: they need no node.
_METHODS = """
size dim numel nelement stride element_size is_floating_point is_complex is_contiguous storage_offset get_device type
__len__ ndimension is_signed __hash__ __repr__ requires_grad_ is_same_size is_pinned
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

# Functions that hand out a tensor's memory: whoever gets it may write there, too.
_LENDING: set[Any] = {
    getattr(Tensor, name)
    for name in ("data_ptr", "untyped_storage", "storage", "numpy", "__array__", "__dlpack__")
    if hasattr(Tensor, name)
}


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operators that run while no recorded function does."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.paused = False
        self.given: list[Tensor] = []  # what the call that runs may read

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # this call of it is not the model's
            return self._noticed(func, args, kwargs)

    def _noticed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paused or getattr(func, "namespace", "") == "prim":
            return func(*args, **kwargs)
        self.recorder.bypassed(func, [t for t in _tensors((args, kwargs)) if not any(t is own for own in self.given)])
        result = func(*args, **kwargs)
        written = [t for t in _written(func, args, kwargs) if not any(t is own for own in self.given)]
        for tensor in written:
            self.recorder.forget(tensor)
        return result


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operator changes, by its schema."""
    arguments = getattr(getattr(func, "_schema", None), "arguments", ())
    changed = [
        args[index] if index < len(args) else kwargs.get(argument.name)
        for index, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors(changed)


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
    guarded = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.sized: set[tuple[fx.Node, int | None]] = set()
        self.source: str | None = None  # of what runs, where the frames do not tell
        self._model = model
        self._guard = _Guard(self) if self.guarded else None
        self._inside_leaf = False
        self.changes = 0
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
                    self._remember(tensor)

    def __enter__(self) -> Recorder:
        self.active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        if self._guard is not None:
            self._guard.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._guard is not None:
            self._guard.__exit__(*exc)  # type: ignore[no-untyped-call]
        self.active.pop()
        super().__exit__(*exc)  # type: ignore[no-untyped-call]

    @contextmanager
    def module_paths(self, *roots: nn.Module | None) -> Iterator[None]:
        """Keep ``_module_stack`` up to date while the model runs; modules have the names they have in the first root."""
        paths = {
            id(module): name for root in reversed(roots) if root is not None for name, module in root.named_modules()
        }

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

    @contextmanager
    def leaves(self, *roots: nn.Module | None) -> Iterator[None]:
        """Have every leaf module give one call, whatever its forward does."""
        found = {
            module: kind
            for root in roots
            if root is not None
            for module in root.modules()
            if (kind := leaf_class(module))
        }
        before = {module: vars(module).get("forward") for module in found}
        for module, kind in found.items():
            vars(module)["forward"] = self._as_one_call(module, kind, module.forward)
        try:
            yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = forward

    def _as_one_call(self, module: nn.Module, kind: type[nn.Module], forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside_leaf:
                return forward(*args, **kwargs)
            own = {
                name: tensor
                for named in (module.named_parameters, module.named_buffers)
                for name, tensor in named(remove_duplicate=False)
            }
            self._inside_leaf = True
            try:
                with self.unguarded():
                    nodes = {name: self.node_of(tensor) for name, tensor in own.items()}
                    result, node = self._call(kind, forward, args, kwargs, list(own.values()))
            finally:
                self._inside_leaf = False
            node.meta.update(leaf=module, own=nodes)
            return result

        return call

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
        if self._inside_leaf:
            return func(*args, **kwargs)
        if func in _METADATA:
            if func in _SIZES and (node := self._nodes.get(args[0])) is not None:
                dim = args[1] if len(args) > 1 else 0 if func is Tensor.__len__ else None
                self.sized.add((node, dim if isinstance(dim, int) else None))
            return self._at_full_speed(func, args, kwargs) if func is Tensor.__repr__ else func(*args, **kwargs)
        return self._at_full_speed(self._recorded, (func, args, kwargs), {})

    def _recorded(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result, _ = self._call(func, func, args, kwargs)
        if func in _LENDING:
            self.forget(args[0])
        return result

    def _call(
        self, target: Any, func: Callable[..., Any], args: Any, kwargs: Any, own: list[Tensor] | None = None
    ) -> tuple[Any, fx.Node]:
        """Run ``func`` and record it as ``target``; a leaf module may read its ``own`` tensors, too."""
        # arguments are looked up first: an in-place function will bind its target anew
        tensors: list[Tensor] = []
        node_args, node_kwargs = self._map(args, tensors), self._map(kwargs, tensors)
        versions = [_version(t) for t in tensors]
        # all that a function reads is among its arguments; a leaf module might use tensors of others, too
        result = func(*args, **kwargs) if own is None else self._watched(func, args, kwargs, [*tensors, *own])
        node = self.graph.create_node("call_function", target)
        # set here, since create_node first searches what it is given for symbolic sizes, and takes longer than all else
        node.args, node.kwargs = node_args, node_kwargs
        node.meta.update(module=self._module_stack[-1], source=self.source or user_frame())
        mutated = [t for t, version in zip(tensors, versions, strict=True) if _version(t) != version]
        if mutated:
            self.changes += 1
            node.meta["aliased"] = [alias for t in mutated for alias in self._aliases(t)]
        # __setitem__ and its kind return nothing and change their first argument
        self._bind_result(mutated[0] if result is None and mutated else result, node)
        return result, node

    def _at_full_speed(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run without the guard, which costs time at every operator."""
        guard = self._guard
        if guard is None:
            return func(*args, **kwargs)
        depth = torch._C._len_torch_dispatch_stack()
        if not depth or torch._C._get_dispatch_stack_at(depth - 1) is not guard:
            with self.unguarded():  # the model entered a mode of its own
                return func(*args, **kwargs)
        torch._C._pop_torch_dispatch_stack(None)
        try:
            return func(*args, **kwargs)
        finally:
            torch._C._push_on_torch_dispatch_stack(guard)

    @contextmanager
    def unguarded(self) -> Iterator[None]:
        """Have the guard look away."""
        if self._guard is None:
            yield
            return
        before, self._guard.paused = self._guard.paused, True
        try:
            yield
        finally:
            self._guard.paused = before

    def _watched(self, func: Callable[..., Any], args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Run with the guard on the look-out for what is not ``given``."""
        guard = self._guard
        if guard is None:
            return func(*args, **kwargs)
        before, guard.paused, guard.given = guard.paused, False, given
        try:
            return func(*args, **kwargs)
        finally:
            guard.paused, guard.given = before, []

    def bypassed(self, target: Any, tensors: list[Tensor]) -> None:
        """State that code which is not recorded reads those of ``tensors`` that are known."""
        nodes = [self.node_of(t) for t in tensors if t in self._nodes or t in self._names]
        self._note_bypass(target, nodes)

    def _note_bypass(self, target: Any, nodes: list[fx.Node]) -> None:
        if nodes:
            node = self.graph.create_node("call_function", target, (nodes,))
            node.meta.update(module=self._module_stack[-1], source=self.source or user_frame(), bypass=True)

    def forget(self, tensor: Tensor) -> None:
        """State that nothing is known any more of the values of ``tensor`` and of all that lies in its memory."""
        with torch._C.DisableTorchFunction():
            for known in self._sharing(tensor):
                self._bind_unknown(known)

    def known(self, tensor: Tensor) -> fx.Node | None:
        """The node that made ``tensor``, if one did."""
        return self._nodes.get(tensor)  # type: ignore[no-any-return]

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that made ``tensor``."""
        if (node := self._nodes.get(tensor)) is not None:
            return node  # type: ignore[no-any-return]
        name = self._names.get(tensor)
        if name is None:
            known = [self.node_of(t) for t in self._sharing(tensor)]
            self._note_bypass(memory_of, known)
            return self._bind_unknown(tensor)
        node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta["unknown"] = False
        if not tensor.is_floating_point():
            node.meta["constant"] = tensor
        self._attributes[name] = node
        self._bind(tensor, node)
        return node

    def _bind_unknown(self, tensor: Tensor) -> fx.Node:
        target = f"unknown_{len(self._attributes)}"
        node = self._attributes[target] = self.graph.create_node("get_attr", target)
        node.meta["unknown"] = True
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
        self._remember(tensor)

    def _remember(self, tensor: Tensor) -> None:
        if pointer := _pointer(tensor):
            self._storages.setdefault(pointer, []).append(weakref.ref(tensor))

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        """The known tensors in the memory of ``tensor``."""
        pointer = _pointer(tensor)
        alive = {id(t): t for ref in self._storages.get(pointer, ()) if (t := ref()) is not None}
        self._storages[pointer] = [weakref.ref(t) for t in alive.values()]
        return [t for t in alive.values() if _pointer(t) == pointer]

    def _aliases(self, changed: Tensor) -> list[fx.Node]:
        return list(
            dict.fromkeys(self._nodes[t] for t in self._sharing(changed) if t is not changed and t in self._nodes)
        )

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


def memory_of(*tensors: Tensor) -> None:
    """Stands in a recording for whatever made a tensor in the memory of known ones unseen: dlpack, a view, ``torch.vmap``."""


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
    """File and line of the innermost frame outside torch and pdc-fx, as the end of its path: ``torchvision/models/resnet.py:92``.

    That tells a person enough, is the same on every machine, and fits a line of a terminal.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_ROOTS):
        frame = frame.f_back
    path = frame.f_code.co_filename.replace("\\", "/").strip("/")
    return f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
