"""Trace a module symbolically with ``torch.fx``, guided by the values of one real forward pass.

Plain symbolic tracing stops where Python asks a proxy for something it cannot know: how many parts a ``chunk`` has, whether a
padding is positive, what ``len`` is. Here every proxy carries the value it has on the example inputs, so that such questions are
answered. What an answer assumes about the sizes of the input is written into the graph as an assertion: a graph that was
specialised is loud at other sizes, never wrong. A question about the *data* (``if x.sum() > 0``) has no answer that would
hold for the next input, and ends the trace.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pdc_fx.errors import TraceError
from pdc_fx.trace import (
    Inputs,
    as_arguments,
    copied,
    fresh,
    in_mode,
    keeping_buffers,
    leaf_class,
    own_precision,
    plain,
    user_frame,
)

# Modules without parameters whose sizes may have to follow the channels: traced through, so that a node of the graph holds them.
_OPEN = (nn.ChannelShuffle, nn.Flatten, nn.Unflatten, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)

# Functions that torch calls without asking proxies among their arguments, which are sizes, values or dtypes.
_CREATION = ("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn")
_CONVERSION = ("tensor", "as_tensor", "asarray")
_PRECISION = ("finfo", "iinfo")

# What a tensor is asked for the number of its axes.
_RANK = {"ndim", "dim", "ndimension"}

# Those in which a network is delivered and proved: of real and of complex numbers.
_PRECISIONS = ((torch.float32, torch.complex64), (torch.float64, torch.complex128))


def symbolic_trace(model: nn.Module, example_inputs: Inputs) -> fx.GraphModule:
    """The module in eval mode as a graph that can be edited; it shares its tensors with ``model``.

    Raises:
        TraceError: the forward pass depends on the data, calls what cannot be traced, or gives something else when traced.

    >>> class Halves(nn.Module):
    ...     def forward(self, x):
    ...         return sum(list(x.chunk(2, 1)))
    >>> symbolic_trace(Halves(), torch.ones(1, 4))(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """
    args = fresh(as_arguments(example_inputs))
    tracer = _Tracer(args)
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    with in_mode(model, training=False), torch.no_grad():
        # a forward pass may leave values, here proxies, on the module: a copy that has the same tensors
        twin = copied(model, {id(tensor): tensor for tensor in tensors})
        with keeping_buffers(twin) as changed, tracer.welcomed(twin):
            try:
                graph = tracer.trace(twin)
            except TraceError:
                raise
            except Exception as error:  # a trace runs code of the user on proxies, which may fail in any way
                raise TraceError(f"torch.fx cannot trace the model: {type(error).__name__}: {error}") from error
        if changed:
            raise TraceError(f"the forward pass changes '{min(changed)}', which a graph would not go on to do")
        tracer.drop_unused(graph)
        return fx.GraphModule(twin, graph, type(model).__name__)


def settled_at(value: Any) -> str:
    """What the assertion in a graph says where a number is another one."""
    return f"traced where a size is {value}, and fit for no other"


class _Value(fx.Proxy):
    """A proxy that knows its value on the example inputs."""

    def __init__(self, node: fx.Node, tracer: _Tracer) -> None:
        super().__init__(node, tracer)
        self.value: Any = None

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.value, name)
        if isinstance(self.value, Tensor) and name in _RANK:  # no input changes it, and it is an index at times
            return attribute
        if callable(attribute):
            return _Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # ``callable`` says yes of every proxy, so code that takes a value or a function calls what is a value
        return super().__call__(*args, **kwargs) if callable(self.value) else self

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        return int(self.tracer.length(self))  # type: ignore[attr-defined]

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.settled(self), digits)  # type: ignore[attr-defined]

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.tracer.settled(self), dtype)  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return int(self.tracer.settled(self))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.settled(self))  # type: ignore[attr-defined]


class _Numbers(type):
    """Makes a stand-in for ``range``, the function and the type, that takes proxies.

    An ``__index__`` of proxies would do, but torch asks it of arguments that it takes as they are.
    """

    def __call__(cls, *bounds: Any) -> range:
        return range(*(int(bound) if isinstance(bound, _Value) else bound for bound in bounds))

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, range)


class _Range(metaclass=_Numbers):
    """What ``range`` means while a model is traced."""


class _Method:
    """A method of a proxy, about to be called."""

    def __init__(self, owner: _Value, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


class _Tracer(fx.Tracer):
    """Runs every call on the values as it is traced."""

    proxy_buffer_attributes = True  # what is computed from statistics has their channels, too

    def __init__(self, args: tuple[Any, ...]) -> None:
        super().__init__()
        self._args = args
        self._running = False
        self._droppable: set[fx.Node] = set()  # numbers, and what is behind an answer that is part of the graph

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The arguments that are given, and no others: defaults, and what a decorator does with them, are part of what is traced."""
        names = _argument_names(root_fn, len(self._args))
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in names]
        for proxy, value in zip(inputs, self._args, strict=True):
            proxy.value = value
        return root_fn, [self.root, *inputs]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if leaf_class(m) is not None:
            return True
        return not isinstance(m, _OPEN) and super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> _Value:
        return _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        return super().create_arg(plain(a))

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if kind == "placeholder":
            return proxy
        values = fx.node.map_aggregate((tuple(args), dict(kwargs)), _value_of)  # slices included
        proxy.node.meta["source"] = user_frame()
        self._running = True  # fx patches module calls and attributes while it traces
        try:
            with own_precision(self.root):
                proxy.value = self._run(kind, target, *values)
        finally:
            self._running = False
        if isinstance(proxy.value, torch.dtype):
            proxy.node.meta["value"] = proxy.value
        if isinstance(proxy.value, (int, torch.Size)):
            self._droppable.add(proxy.node)
        return proxy

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running or m not in (self.submodule_paths or ()):  # a slice of a sequence has no name; its parts have
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _run(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    @contextmanager
    def welcomed(self, model: nn.Module) -> Iterator[None]:
        """Make functions take proxies that know nothing of them: those of torch that create tensors, check a condition or ask
        what is a tensor, and ``len``, ``isinstance`` and ``range``."""

        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def create(*args: Any, **kwargs: Any) -> Any:
                if any(isinstance(leaf, _Value) for leaf in tree_leaves((args, kwargs))):
                    return self.create_proxy("call_function", function, args, kwargs)
                with own_precision(self.root):
                    return function(*args, **kwargs)

            return create

        def is_instance(value: Any, kinds: Any) -> bool:
            return isinstance(_value_of(value), kinds)

        def length(values: Any) -> Any:
            return self.length(values) if isinstance(values, _Value) else len(values)

        def checked(kind: Any, condition: Any, message: Any) -> None:
            check(kind, bool(condition) if isinstance(condition, _Value) else condition, message)

        check = torch._check_with  # of which torch._check and its kind are made
        is_instance_of = torch.jit.isinstance
        in_torch: dict[str, Callable[..., Any]] = {
            name: guarded(getattr(torch, name)) for name in (*_CREATION, *_CONVERSION, *_PRECISION)
        }
        in_torch |= {"_check_with": checked, "is_tensor": lambda value: is_instance(value, Tensor)}
        in_jit = {"isinstance": lambda value, kinds: is_instance_of(_value_of(value), kinds)}  # type: ignore[no-untyped-call]
        own = {"isinstance": is_instance, "len": length, "range": _Range}
        with ExitStack() as stack:
            for space, stand_ins in ((vars(torch), in_torch), (vars(torch.jit), in_jit)):
                stack.enter_context(_replaced(space, stand_ins))
            for space in _namespaces(model):
                stack.enter_context(_replaced(space, {name: own[name] for name in own.keys() - space.keys()}))
            yield

    def settled(self, proxy: _Value) -> Any:
        """The value of a number that does not depend on the data, with an assertion that it stays what it is; of what buffers say, none.

        Nor may it depend on the precision: the proof runs in double precision, the network that is delivered in its own.
        """
        value = proxy.value
        if isinstance(value, Tensor):
            behind = self._of_buffers(proxy.node)
            if not behind:
                raise TraceError("the forward pass depends on the data, not only on its sizes")
            self._droppable |= behind
            return value
        if any(answer != value for answer in _in_other_precisions(proxy.node)):
            raise TraceError("the forward pass asks for a dtype, which is another one where exactness is measured")
        self.create_proxy(
            "call_function",
            torch._assert,
            (proxy == value, settled_at(value)),
            {},
        )
        return value

    def _of_buffers(self, node: fx.Node) -> set[fx.Node]:
        """The calls behind a value that is computed from buffers and nothing else, which no image changes and no training; else none."""
        todo, seen = [node], {node}
        while todo:
            inputs = (now := todo.pop()).all_input_nodes
            if not inputs and (now.op != "get_attr" or isinstance(self._run(now.op, now.target, (), {}), nn.Parameter)):
                return set()
            todo += [n for n in inputs if n not in seen]
            seen.update(inputs)
        return seen

    def drop_unused(self, graph: fx.Graph) -> None:
        """Remove sizes that nothing reads, and what was only asked for an answer that is part of the graph now.

        A buffer that nothing else reads has no channels.
        """
        for node in reversed(graph.nodes):
            if node in self._droppable and not node.users:
                graph.erase_node(node)

    def length(self, proxy: _Value) -> Any:
        """How many there are: a proxy where that may change. How many axes a tensor has does not."""
        if isinstance(proxy.value, Tensor):
            return proxy.shape[0]
        if isinstance(proxy.value, (list, tuple)) and not isinstance(proxy.value, torch.Size):
            return self.create_proxy("call_function", len, (proxy,), {})
        return len(proxy.value)

    def to_bool(self, obj: fx.Proxy) -> bool:
        assert isinstance(obj, _Value)
        return bool(self.settled(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        assert isinstance(obj, _Value)
        return iter([obj[index] for index in range(len(obj))])  # type: ignore[index]

    def keys(self, obj: fx.Proxy) -> Any:
        assert isinstance(obj, _Value)
        return list(obj.value.keys())


def _argument_names(forward: Callable[..., Any], count: int) -> list[str]:
    """The names of the first arguments of a method."""
    names: list[str] = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind == parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[:count]


def _in_other_precisions(asked: fx.Node) -> list[Any]:
    """What a question about the dtypes of tensors is answered where their floating-point numbers have another precision."""
    held: dict[fx.Node, Any] = {a: a.meta.get("value") for a in asked.args if isinstance(a, fx.Node)}
    if not any(isinstance(a, torch.dtype) for a in (*held.values(), *asked.args)):
        return []
    if asked.kwargs or None in held.values() or not callable(asked.target):
        return [None]
    return [
        asked.target(*(_at(precision, held[a]) if isinstance(a, fx.Node) else a for a in asked.args))
        for precision in _PRECISIONS
    ]


def _at(precision: tuple[torch.dtype, torch.dtype], dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return precision[1]
    return precision[0] if dtype.is_floating_point else dtype


@contextmanager
def _replaced(space: dict[str, Any], stand_ins: dict[str, Any]) -> Iterator[None]:
    """Let names of a file mean something else for a while."""
    hidden = {name: space[name] for name in stand_ins if name in space}
    space.update(stand_ins)
    try:
        yield
    finally:
        space.update(hidden)
        for name in stand_ins.keys() - hidden.keys():
            del space[name]


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The global names that code of a forward pass, and what it calls, may look up: those of every module, but for some packages."""
    spaces: list[Any] = [getattr(type(module).forward, "__globals__", None) for module in model.modules()]
    for name, module in list(sys.modules.items()):  # where tools put other things as well
        if name.partition(".")[0] not in sys.stdlib_module_names:
            spaces.append(getattr(module, "__dict__", None))
    names = {id(space): space for space in spaces if isinstance(space, dict)}.values()
    return [space for space in names if str(space.get("__name__")).partition(".")[0] not in ("torch", "pdc_fx")]


def _value_of(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, _Value) else leaf
