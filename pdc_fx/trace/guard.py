"""Notices at dispatch level what no recorded torch function shows: TorchScript, C++ extensions, dlpack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Listener(Protocol):
    """Is told what the guard notices."""

    def bypassed(self, target: Any, tensors: list[Tensor]) -> None:
        """Code that is not recorded reads ``tensors``."""
        ...

    def forget(self, tensor: Tensor) -> None:
        """Code that is not recorded has changed ``tensor``."""
        ...


class Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operators that run while no recorded function does."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.listener = listener
        self.paused = False
        self.given: list[Tensor] = []  # what the call that runs may read

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # this call of it is not the model's
            return self._noticed(func, args, kwargs)

    def _noticed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paused or getattr(func, "namespace", "") == "prim":
            return func(*args, **kwargs)
        self.listener.bypassed(func, [t for t in _tensors((args, kwargs)) if not any(t is own for own in self.given)])
        result = func(*args, **kwargs)
        written = [t for t in _written(func, args, kwargs) if not any(t is own for own in self.given)]
        for tensor in written:
            self.listener.forget(tensor)
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
