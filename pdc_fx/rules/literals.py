"""What calls have written out: sizes and orders that must follow the channels that went, and how each is edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from pdc_fx.rules.base import argument_of
from pdc_fx.rules.channels import Shape
from pdc_fx.rules.registry import functions, key_of, keys_of, refuse_classes


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
    """

    node: fx.Node
    call: fx.Node
    source: Shape
    parts: tuple[Shape, ...]
    kept_in: tuple[Tensor | None, ...]
    kept_out: tuple[Tensor | None, ...]

    @property
    def sizes(self) -> dict[int, int]:
        """Axis of the result -> its size now, for the axes that carry channels."""
        return {d: int(mask.sum()) for d, mask in enumerate(self.kept_out) if mask is not None}

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument as it was: numbers have their values, even those that the graph computes."""
        return argument_of(self.call, position, name, default)

    def set(self, position: int, name: str, value: Any) -> None:
        """Write an argument out; what is as it was stays computed."""
        value = _renewed(argument_of(self.node, position, name), self.get(position, name), value)
        if position < len(self.node.args):
            self.node.update_arg(position, value)
        else:
            self.node.update_kwarg(name, value)


def _renewed(written: Any, was: Any, now: Any) -> Any:
    """``now``, but as it is written wherever that has not changed.

    >>> _renewed(("computed", 8), (2, 8), (2, 5))
    ('computed', 5)
    """
    sequence = (tuple, list)
    if isinstance(written, sequence) and isinstance(now, sequence) and len(written) == len(was) == len(now):
        return type(now)(map(_renewed, written, was, now))
    return written if was == now else now


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
