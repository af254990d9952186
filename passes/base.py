"""The pass contract: check what comes in, do one thing, check what goes out.

A pass is a small class. Its options are fields, ``call`` does the work, ``requires`` refuses an input it cannot handle before any
work is done, and ``ensures`` checks the *result*. An error that leaves a pass is chained with the pass's name.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from threading import RLock
from typing import Generic, TypeVar

import torch

from pdc_fx.errors import PdcError

_ONE_AT_A_TIME = RLock()
"""Passes record under modes and defaults that all threads share."""

In = TypeVar("In")
Out = TypeVar("Out")


class Pass(ABC, Generic[In, Out]):
    """One step of the compiler.

    >>> class Double(Pass[int, int]):
    ...     def call(self, value: int) -> int:
    ...         return 2 * value
    ...     def ensures(self, value: int, result: int) -> None:
    ...         if result % 2:
    ...             raise PdcError("odd")
    >>> Double()(21)
    42
    """

    def __call__(self, value: In) -> Out:
        try:
            with _ONE_AT_A_TIME, torch.inference_mode(False):
                self.requires(value)
                result = self.call(value)
                self.ensures(value, result)
        except PdcError as error:
            if sys.version_info >= (3, 11):
                error.add_note(f"in pass {type(self).__name__}")
            raise
        return result

    @abstractmethod
    def call(self, value: In) -> Out:
        """Do the work."""

    def requires(self, value: In) -> None:
        """Raise a :class:`~pdc_fx.errors.PdcError` if ``value`` cannot be handled."""

    def ensures(self, value: In, result: Out) -> None:
        """Raise a :class:`~pdc_fx.errors.PdcError` if ``result`` is not what the pass promises."""
