"""Run a model once as it is to be looked at: its call arguments, in eval mode, without gradients, in its own precision."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pdc_fx.errors import TraceError

Inputs = Tensor | tuple[Any, ...]
"""A model's call arguments: a tensor, or a tuple of them."""


def as_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple of positional arguments."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def described(args: tuple[Any, ...]) -> str:
    """Call arguments in words, for an error message."""
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else type(a).__name__ for a in args)


_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


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
        return (Tensor.double if func is Tensor.float else func)(*map(double, args), **named)


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
    """Put every module of ``model`` in eval mode and without gradients, and back as it was afterwards.

    Raises:
        TraceError: it cannot be put in eval mode.
    """
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
    except Exception as error:  # a module may do there what it likes
        raise TraceError(
            f"{type(model).__name__} raised {type(error).__name__} when it was put in eval mode: {error}",
            hint="merge adapters into the weights first, for good",
        ) from error
    try:
        with torch.no_grad(), own_precision(model), _eagerly():
            yield
    finally:
        if any(
            trained for _, trained in training
        ):  # a module may do more than to note its mode (merge an adapter, say)
            model.train()
        for module, trained in training:
            module.training = trained


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards every buffer of ``model`` is as it was: a forward pass may keep a running mean."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_inference()  # which cannot change
    ]
    versions = [buffer._version for *_, buffer, _ in kept]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name, buffer, before), version in zip(kept, versions, strict=True):
                if buffer._version != version:
                    buffer.copy_(before)
                module._buffers[name] = buffer


@contextmanager
def with_same_draws(model: nn.Module) -> Iterator[None]:
    """Random numbers begin with the same one each time: models that draw some in eval mode can be compared."""
    devices = sorted({t.device.index for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run what was compiled with ``torch.compile`` as the Python it was compiled from."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*when there are global hooks on modules")
        yield


def way_out(error: Exception) -> str:
    """What to look at where a forward pass raised ``error``."""
    if isinstance(error, TypeError) and "argument" in str(error):
        return "example_inputs is one tensor, or a tuple with every argument of forward()"
    return "check the shape and dtype of the example inputs (--input on the command line)"
