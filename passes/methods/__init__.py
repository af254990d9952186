"""Methods of tying, one file each."""

from __future__ import annotations

from pdc_fx.errors import InputError
from pdc_fx.passes.methods.base import Method
from pdc_fx.passes.methods.csgd import CSGD
from pdc_fx.passes.methods.hard import HARD
from pdc_fx.passes.methods.pdc import PDC
from pdc_fx.passes.methods.progressive import PROGRESSIVE

METHODS = {method.name: method for method in (PDC, CSGD, HARD, PROGRESSIVE)}


def method_of(mode: str | Method) -> Method:
    """A method by its name, or itself.

    Raises:
        InputError: an unknown name.

    >>> method_of("hard").held
    True
    """
    if isinstance(mode, Method):
        return mode
    if mode not in METHODS:
        raise InputError(f"unknown tying mode {mode!r}", hint=f"use {', '.join(map(repr, METHODS))}")
    return METHODS[mode]


__all__ = ["HARD", "METHODS", "Method", "method_of"]
