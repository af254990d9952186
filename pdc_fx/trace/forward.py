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

Inputs = Tensor | tuple[Any, ...]
"""A model's call arguments: a tensor, or a tuple of them."""


def as_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple of positional arguments."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def described(args: tuple[Any, ...]) -> str:
    """Call arguments in words, for an error message."""
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else type(a).__name__ for a in args)


class _DoublePrecision(TorchFunctionMode):
    """Reads float32, where a forward pass asks for it by name, as float64, and so tensors that a module holds as plain attributes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changes = _changes(func)

        def double(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.double() if value.dtype is torch.float32 and not changes else value
            if type(value) in (list, tuple):
                return type(value)(map(double, value))
            return torch.float64 if value is torch.float32 else value

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
    """Put every module of ``model`` in eval mode and without gradients, and back as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), own_precision(model), _eagerly():
            yield
    finally:
        for module in training:
            module.training = True


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
