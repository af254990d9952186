"""The errors pdc-fx raises, one small hierarchy.

Every message says what was wrong, where (module, tensor, shape or file) and the way out. The command line prints the
message alone, without a traceback, and exits with the class's :attr:`~PdcError.exit_code`.
"""

from __future__ import annotations


class PdcError(Exception):
    """Base class of all errors raised on purpose by pdc-fx.

    Args:
        what: what was wrong, one sentence.
        where: the module, tensor, shape or file it concerns.
        hint: the way out.

    >>> str(PdcError("the weights do not fit", where="fc.weight: 10x64 against 100x64", hint="pass --num-classes 100"))
    'the weights do not fit [fc.weight: 10x64 against 100x64]; pass --num-classes 100'
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what + (f" [{where}]" if where else "") + (f"; {hint}" if hint else ""))


class InputError(PdcError):
    """Bad input or usage: a missing file, an option out of range, weights that do not fit, data that cannot be read."""


def require_kind(value: object, kind: type | tuple[type, ...], what: str, hint: str) -> None:
    """Raise :class:`InputError` for an argument of another kind.

    >>> require_kind("{}", dict, "a plan", "read it first")
    Traceback (most recent call last):
    pdc_fx.errors.InputError: a plan is asked for, and a str was given; read it first
    """
    if not isinstance(value, kind):
        raise InputError(f"{what} is asked for, and a {type(value).__name__} was given", hint=hint)


class TraceError(PdcError):
    """The model could not be run or recorded on the example inputs.

    Attributes:
        calls: how many torch functions had run when the forward pass raised.
        node: name of the node at which a graph raised.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", calls: int = 0, node: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.calls, self.node = calls, node


class PlanError(PdcError):
    """The reduction that was asked for cannot be met."""


class NothingToMergeError(PdcError):
    """No two channels of the model may be merged."""

    exit_code = 3


class RewriteError(PdcError):
    """The smaller network cannot be built: a size is written into the program where it cannot be edited."""


class ExactnessError(PdcError):
    """A merge would not be exact, or was measured not to be."""

    exit_code = 1


class ExportError(PdcError):
    """The model could not be exported to ONNX."""


class VerificationError(PdcError):
    """Two forms of the model that must agree do not."""

    exit_code = 1


class Interrupted(PdcError):
    """SIGTERM or Ctrl-C ended a training run between two steps.

    Attributes:
        exit_code: 128 and the number of the signal, as shells count.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", signal: int = 2) -> None:
        super().__init__(what, where=where, hint=hint)
        self.exit_code = 128 + signal


class ArtifactError(InputError):
    """An output directory or one of its files is missing, damaged, or does not belong with the others."""
