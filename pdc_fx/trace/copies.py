"""Copies: of a module, whatever it holds, and of call arguments, which a forward pass may change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pdc_fx.errors import TraceError

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def copied(model: Module, memo: Mapping[int, Any] | None = None) -> Module:
    """``copy.deepcopy``, also of a module that has kept a tensor of its last forward pass: a copy of that has no gradient.

    Args:
        model: any module.
        memo: copies that exist already, by the ``id`` of what they are copies of.

    Raises:
        TraceError: it holds what cannot be copied (a lock, say), a view of one of its own parameters, or a function that reaches the model
            itself, as a lambda over ``self`` does: that of a copy would run the layers of the original.

    >>> net = nn.ReLU()
    >>> net.last = net(torch.ones(1, requires_grad=True))
    >>> copied(net).last
    tensor([1.])
    """
    held = (leaf for module in model.modules() for leaf in tree_leaves(list(vars(module).values())))
    made = {id(t): t for t in held if isinstance(t, Tensor) and not t.is_leaf}
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    if any(id(t._base) in own for t in made.values()):
        raise TraceError(
            f"{type(model).__name__} keeps a view of a parameter, which would be none in a copy",
            hint="take the view in forward()",
        )
    _require_own_layers(model)
    kept = {key: t.detach().clone() for key, t in made.items()}
    try:
        return copy.deepcopy(model, kept | dict(memo or {}))
    except Exception as error:  # anything that the model holds may object
        raise TraceError(
            f"{type(model).__name__} cannot be copied: {error}",
            hint="keep what cannot be copied outside of the module, or give its class a __deepcopy__",
        ) from error


def _require_own_layers(model: nn.Module) -> None:
    modules = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        for function in (*vars(module).values(), *hooks):
            for name, value in _closed_over(function):
                if id(value) in modules:
                    raise TraceError(
                        f"'{function.__qualname__}' reaches the model through '{name}': in a copy it would run the layers of the original",
                        where=f"module '{path}'",
                        hint="make it a method, which is copied with its module",
                    )


def _closed_over(function: object) -> Iterator[tuple[str, object]]:
    """The variables of a function that are of the function around it, by name, as far as they have a value."""
    if isinstance(function, FunctionType):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # an empty cell
                yield name, cell.cell_contents


def fresh(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Call arguments to run a model on: it may change tensors in place, or take entries out of a dict.

    >>> args = ({"image": torch.zeros(1)},)
    >>> _ = fresh(args)[0].pop("image").add_(1)
    >>> args
    ({'image': tensor([0.])},)
    """
    copies: tuple[Any, ...] = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args)
    return copies
