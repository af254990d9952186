"""The tensors in what a model returns, however they are packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, tree_flatten_with_path

from pdc_fx.errors import TraceError

_CLOSED = (str, bytes, type, FunctionType, nn.Module)
"""What is not searched: a module's own tensors are no outputs."""


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The tensors in an output by their place in it, also those in objects, whatever these hold.

    Raises:
        TraceError: it holds an iterator, which could be read once only.

    >>> import torch
    >>> class Boxes:
    ...     def __init__(self) -> None:
    ...         self.corners = torch.zeros(2, 4)
    >>> list(named_outputs((torch.zeros(1), {"found": [Boxes()]})))
    ['output[0]', "output[1]['found'][0]['corners']"]
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def search(name: str, value: Any) -> None:
        for path, leaf in tree_flatten_with_path(value, is_leaf=_nameless)[0]:
            place = name + "".join(map(str, path))
            if isinstance(leaf, Tensor):
                found[place] = leaf
            elif isinstance(leaf, Iterator):
                raise TraceError(
                    f"the model returns a {type(leaf).__name__}, which can be read once only",
                    where=place,
                    hint="return a list or a tuple",
                )
            elif id(leaf) not in seen and not isinstance(leaf, _CLOSED):
                seen.add(id(leaf))  # it may hold itself
                search(place, _parts(leaf))

    search("output", output)
    return found


def _nameless(value: Any) -> bool:
    """Whether pytree was told how to take this container apart, but not what its parts are called."""
    known = SUPPORTED_NODES.get(type(value))
    return known is not None and known.flatten_with_keys_fn is None


def _parts(value: Any) -> dict[Any, Any] | list[Any]:
    """What a container or an object holds that pytree takes for a leaf."""
    if isinstance(value, (Sequence, Set)):
        return list(value)
    slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    names = [name for own in slots for name in ([own] if isinstance(own, str) else own)]
    held = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {**held, **value} if isinstance(value, Mapping) else held
