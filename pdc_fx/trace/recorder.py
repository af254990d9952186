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
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pdc_fx.errors import TraceError
from pdc_fx.trace.frames import user_frame
from pdc_fx.trace.guard import Guard
from pdc_fx.trace.outputs import named_outputs
from pdc_fx.trace.storage import disjoint, pointer_of
from pdc_fx.trace.targets import leaf_class, memory_of

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

    guarded = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.sized: set[tuple[fx.Node, int | None]] = set()
        self.source: str | None = None  # of what runs, where the frames do not tell
        self._model = model
        self._guard = Guard(self)
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
        super().__enter__()  # type: ignore[no-untyped-call]
        if self.guarded:
            self._guard.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.guarded:
            self._guard.__exit__(*exc)  # type: ignore[no-untyped-call]
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

    def placeholders(self, args: tuple[Any, ...]) -> None:
        for index, leaf in enumerate(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)):
            self._bind(leaf, self.graph.placeholder(f"input_{index}"))

    def finish(self, output: Any) -> None:
        tensors = list(named_outputs(output).values())
        if not tensors:
            raise TraceError(f"the model returned no tensor but a {type(output).__name__}")
        self.graph.output(tuple(self.node_of(t) for t in tensors))

    def unreached(self) -> tuple[str, ...]:
        found = []
        for name, module in self._model.named_modules():
            parameters = [p for p in module._parameters.values() if p is not None]
            if any(p not in self._names for p in parameters):
                raise TraceError(
                    "the model makes a parameter in its forward pass",
                    where=f"module '{name}'",
                    hint="make it in __init__; what is computed from others is no parameter",
                )
            own = [self._names[p] for p in parameters]
            if own and not any(tensor in self._attributes for tensor in own):
                found.append(name)
        return tuple(found)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside_leaf:
            return func(*args, **kwargs)
        if func in _METADATA and not (func is Tensor.type and len(args) + len(kwargs) > 1):  # which asks, or converts
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
        before, self._guard.paused = self._guard.paused, True
        try:
            yield
        finally:
            self._guard.paused = before

    def _watched(self, func: Callable[..., Any], args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Run with the guard on the look-out for what is not ``given``."""
        guard = self._guard
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
        node = self._nodes.get(tensor)
        if node is not None and _of_shape(tensor, node.meta["shape"]):  # else it was given other memory unseen
            return node  # type: ignore[no-any-return]
        name = self._names.get(tensor)
        if name is None:
            known = [self.node_of(t) for t in self._sharing(tensor) if t is not tensor]
            self._note_bypass(memory_of, known)
            return self._bind_unknown(tensor)
        node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta["unknown"] = False
        if not tensor.is_floating_point():
            node.meta["constant"] = tensor.detach().cpu()
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
        self._nodes[tensor] = node
        self._remember(tensor)

    def _remember(self, tensor: Tensor) -> None:
        if pointer := pointer_of(tensor):
            self._storages.setdefault(pointer, []).append(weakref.ref(tensor))

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        """The known tensors in the memory of ``tensor``."""
        pointer = pointer_of(tensor)
        alive = {id(t): t for ref in self._storages.get(pointer, ()) if (t := ref()) is not None}
        self._storages[pointer] = [weakref.ref(t) for t in alive.values()]
        return [t for t in alive.values() if pointer_of(t) == pointer]

    def _aliases(self, changed: Tensor) -> list[fx.Node]:
        others = [t for t in self._sharing(changed) if t is not changed and t in self._nodes]
        return list(dict.fromkeys(self._nodes[t] for t in others if not disjoint(t, changed)))

    def _map(self, value: Any, tensors: list[Tensor]) -> Any:
        """Tensors to nodes (collected in ``tensors``), everything else to what an fx graph can hold."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            tensors.append(value)
            return self.node_of(value)
        value = plain(value)
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


def plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and ranges, as what a graph can hold; anything else as it is.

    >>> plain(np.int64(4)), plain(np.arange(2)), plain(range(2)), plain(True)
    (4, [0, 1], [0, 1], True)
    """
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return list(value) if isinstance(value, range) else value


def _of_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    with torch._C.DisableTorchFunction():  # it is not the model that asks; and TorchScript traces sizes as tensors
        return torch._C._get_tracing_state() is not None or tensor.shape == shape


def _version(tensor: Tensor) -> int:
    """A counter that every in-place change raises."""
    return -1 if tensor.is_inference() else tensor._version
