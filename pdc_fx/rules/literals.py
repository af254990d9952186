"""What calls have written out: sizes and orders that must follow the channels that went, and how each is edited."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from pdc_fx.rules.base import argument_of
from pdc_fx.rules.channels import Shape
from pdc_fx.rules.registry import functions, key_of, keys_of, refuse_classes


@dataclass(frozen=True)
class Written:
    """The arguments of a call as the program has them, and what the nodes that compute numbers will give on the smaller network."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[fx.Node, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Edit:
    """A call in an fx graph whose written-out sizes must follow the channels that went.

    Attributes:
        node: the call, to be changed in place.
        call: the same call as it was recorded, in which numbers that the graph computes have their values.
        source: the shape of its first argument before.
        parts: the shapes of its results before, where it gives several.
        kept_in, kept_out: for each axis of the first argument and of the result a bool mask of the positions that
            remain, or None where all do.
        written: the arguments of ``node`` as they were written.
    """

    node: fx.Node
    call: fx.Node
    source: Shape
    parts: tuple[Shape, ...]
    kept_in: tuple[Tensor | None, ...]
    kept_out: tuple[Tensor | None, ...]
    written: Written = field(default_factory=Written)

    @property
    def sizes(self) -> dict[int, int]:
        """Axis of the result -> its size now, for the axes that carry channels."""
        return {d: int(mask.sum()) for d, mask in enumerate(self.kept_out) if mask is not None}

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument as it was: numbers have their values, even those that the graph computes."""
        return argument_of(self.call, position, name, default)

    def set(self, position: int, name: str, value: Any) -> None:
        """Write an argument out; what is as it was, or becomes what it must be by itself, stays computed."""
        as_it_was = argument_of(self.node, position, name)
        value = self._renewed(as_it_was, argument_of(self.written, position, name), self.get(position, name), value)
        if position < len(self.node.args):
            self.node.update_arg(position, value)
        else:
            self.node.update_kwarg(name, value)

    def _renewed(self, as_it_was: Any, written: Any, was: Any, now: Any) -> Any:
        """``now``, but as the program computes it wherever that gives the same."""
        if isinstance(now, (tuple, list)) and isinstance(was, (tuple, list)) and len(was) == len(now):
            entries = [self._entries(of, len(now)) for of in (as_it_was, written)]
            return type(now)(map(self._renewed, *entries, was, now))
        if was == now:
            return now if as_it_was is None else as_it_was
        live = isinstance(written, fx.Node) and self.written.numbers.get(written) == now
        return written if live else now

    def _entries(self, sizes: Any, count: int) -> Any:
        """The single sizes of an argument that is computed as a whole (``x.size()``), or is written one by one."""
        if isinstance(sizes, fx.Node):
            with self.node.graph.inserting_before(self.node):
                return [self.node.graph.call_function(operator.getitem, (sizes, i)) for i in range(count)]
        return sizes if isinstance(sizes, (tuple, list)) and len(sizes) == count else [None] * count


EditRule = Callable[[Edit], None]


@dataclass(frozen=True)
class Literal:
    """What a call may have written out.

    Attributes:
        edit: brings it in line; None for an order that can only be written as a gather.
        ordered: it is which positions are meant, not only how many: no trial run can show that it fits.
        concerns: whether a given call has it written out.
    """

    edit: EditRule | None
    ordered: bool = False
    concerns: Callable[[fx.Node], bool] = lambda _: True


_LITERALS: dict[Any, Literal] = {}


def literal(
    *targets: Any, ordered: bool = False, concerns: Callable[[fx.Node], bool] = lambda _: True
) -> Callable[[EditRule], EditRule]:
    """Register how what functions have written out is edited, see :class:`Literal`; targets as for :func:`rule`, module classes excepted.

    Sizes that a leaf module keeps are its attributes, for which there is :func:`pdc_fx.resize_rule`.
    """
    keys = [key for target in targets for key in keys_of(target)]
    refuse_classes(keys, "a leaf module has no arguments to edit: its sizes are attributes, see pdc_fx.resize_rule")

    def register(function: EditRule) -> EditRule:
        _LITERALS.update(dict.fromkeys(keys, Literal(function, ordered, concerns)))
        return function

    return register


def gathered(*names: str) -> None:
    """Register functions whose order along an axis is written out in a way that only a gather can replace."""
    for name in names:
        _LITERALS.update(dict.fromkeys(functions(name), Literal(None, ordered=True)))


def literal_of(call: fx.Node) -> Literal | None:
    """What a recorded call has written out, or None."""
    found = _LITERALS.get(key_of(call.target))
    return found if found is not None and found.concerns(call) else None
