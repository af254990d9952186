"""Run a model once as it is to be looked at: its call arguments, in eval mode, without gradients, in its own precision."""

from __future__ import annotations

import random
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pdc_fx.errors import TraceError
from pdc_fx.trace.copies import fresh
from pdc_fx.trace.frames import place_of

Inputs = Tensor | tuple[Any, ...]
"""A model's call arguments: a tensor, or a tuple of them."""


def as_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple of positional arguments."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def described(args: tuple[Any, ...]) -> str:
    """Call arguments in words, for an error message."""
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else type(a).__name__ for a in args)


_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_NAMED_DOUBLE: dict[Any, Any] = {
    Tensor.float: Tensor.double,
    Tensor.cfloat: Tensor.cdouble,  # type: ignore[attr-defined]
}


class _DoublePrecision(TorchFunctionMode):
    """Reads float32, where a forward pass asks for it by name, as float64, and so tensors that a module holds as plain attributes.

    The same for complex numbers of two float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changes = _changes(func)

        def double(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value if changes or value.dtype not in _DOUBLE else value.to(_DOUBLE[value.dtype])
            if type(value) in (list, tuple):
                return type(value)(map(double, value))
            return _DOUBLE.get(value, value) if isinstance(value, torch.dtype) else value

        named = {key: value if key == "out" else double(value) for key, value in (kwargs or {}).items()}
        return _NAMED_DOUBLE.get(func, func)(*map(double, args), **named)


def _changes(func: Any) -> bool:
    """Whether a function changes what it is given, going by its name; it must then be given that and no copy."""
    name = getattr(func, "__name__", "")
    return name in ("__setitem__", "__set__") or (name[-1:] == "_" and name[-2:] != "__") or name in _AUGMENTED


_AUGMENTED = {
    f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}


@contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """Keep a model in double precision in double precision, though its forward pass makes float32 tensors.

    Exactness is measured in float64, on models that were written for float32.
    """
    if not any(p.dtype in _DOUBLE.values() for p in model.parameters()):
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
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put ``model`` in eval mode, or in that of training, and each module back as it was afterwards.

    A module may do more there than to note its mode (merge an adapter into its weight, say), or less (a batch norm that stays in eval
    mode): its own ``train`` is called both ways.

    Raises:
        TraceError: it cannot be put in that mode.
    """
    wanted = "training" if training else "eval"
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
    except Exception as error:  # a module may do there what it likes
        for module, before in modes:
            module.training = before
        raise TraceError(
            f"{type(model).__name__} raised {type(error).__name__} when it was put in {wanted} mode: {error}",
            hint="merge adapters into the weights first, for good",
        ) from error
    try:
        yield
    finally:
        for module, before in modes:  # parents come first
            if module.training != before and type(module).train is not nn.Module.train:
                module.train(before)
        for module, before in modes:
            module.training = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` in eval mode and without gradients, and back as it was afterwards.

    Raises:
        TraceError: it cannot be put in eval mode.
    """
    kinds = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    with in_mode(model, training=False), torch.no_grad(), own_precision(model), _eagerly(), ExitStack() as stack:
        for kind in filter(torch.amp.is_autocast_available, kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def looking_at(model: nn.Module, *args: Any) -> Iterator[tuple[Any, ...]]:
    """Run ``model`` so that nothing of it shows afterwards: in eval mode, on copies of ``args``, with the same random numbers each time.

    Buffers and attributes are as they were afterwards: a forward pass may keep a running mean, or what it computed for images of one size.
    """
    with keeping_buffers(model), _keeping_attributes(model), with_same_draws(model, args), evaluating(model):
        yield fresh(args)


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[set[str]]:
    """Put back every buffer of ``model`` that changes; the names of these are in the set afterwards."""
    kept = [
        (module, f"{prefix}.{name}" if prefix else name, buffer, None if buffer is None else buffer.clone())
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is None or not buffer.is_inference()  # these cannot change
    ]
    versions = [0 if buffer is None else buffer._version for *_, buffer, _ in kept]
    changed: set[str] = set()
    try:
        yield changed
    finally:
        with torch.no_grad():
            for (module, name, buffer, before), version in zip(kept, versions, strict=True):
                own = name.rpartition(".")[2]
                if buffer is not None and before is not None and buffer._version != version:
                    buffer.copy_(before)
                    changed.add(name)
                if module._buffers.get(own, changed) is not buffer:
                    changed.add(name)
                module._buffers[own] = buffer


@contextmanager
def _keeping_attributes(model: nn.Module) -> Iterator[None]:
    """Put back all attributes of the modules of ``model`` that are set or replaced, but those computed from weights anew each time.

    Lists, dicts and sets among them hold afterwards what they held; what torch itself keeps of a module is left alone.
    """

    def stays(value: Any) -> bool:
        return not isinstance(value, Tensor) or value.is_leaf

    torchs = vars(nn.Module()).keys()
    kept = [(own := vars(module), set(own), {k: v for k, v in own.items() if stays(v)}) for module in model.modules()]
    holders = [v for *_, before in kept for k, v in before.items() if k not in torchs and type(v) in _HOLDERS]
    held = [holder.copy() for holder in holders]
    try:
        yield
    finally:
        for now, names, before in kept:
            for name in [name for name in now if name not in names]:
                del now[name]
            now.update(before)
        for holder, content in zip(holders, held, strict=True):
            holder.clear()
            (holder.update if hasattr(holder, "update") else holder.extend)(content)


_HOLDERS = (list, dict, set, OrderedDict, defaultdict, deque)


def seed_all(seed: int) -> None:
    """Of torch, and of NumPy and Python, from which models draw as well."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def with_same_draws(model: nn.Module, args: tuple[Any, ...]) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python begin with the same one each time: models that draw some can be compared."""
    tensors = [t for t in (*model.parameters(), *model.buffers(), *tree_leaves(args)) if isinstance(t, Tensor)]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        np.random.seed(0)
        random.seed(0)
        for generator in (torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)):
            generator.manual_seed(0)  # torch.manual_seed would seed devices, too, on which nothing runs
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run what was compiled with ``torch.compile`` as the Python it was compiled from."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*when there are global hooks on modules")
        yield


def failed(model: nn.Module, error: BaseException, *, where: str = "", calls: int = 0) -> TraceError:
    """What to raise where a forward pass raised ``error``: with the line of the user's, and what to look at."""
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = "example_inputs is one tensor, or a tuple with every argument of forward()"
    elif isinstance(error, (NameError, AttributeError, ImportError, LookupError, SystemExit)):
        hint = "mend that line, or give an example input as in use"
    else:
        hint = "check the shape and dtype of the example inputs (--input on the command line)"
    place = place_of(error)
    return TraceError(
        f"{type(model).__name__} raised {type(error).__name__} in its forward pass: {error}"
        + (f" ({place})" if place else ""),
        where=where,
        hint=hint,
        calls=calls,
    )
