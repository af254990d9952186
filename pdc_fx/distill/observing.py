"""Who is told of a run: an observer (a progress bar), and TensorBoard."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pdc_fx.errors import InputError
from pdc_fx.options import TrainOptions


@dataclass(frozen=True)
class StepReport:
    """After a step: averages over the epoch so far, and where the run stands. ``accuracy`` is that on training images."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    lr: float
    macs: int
    residual: float | None


class Observer(Protocol):
    """Who wants to see the run (a progress bar). ``on_start`` is given the records from before the first step."""

    def on_start(self, records: Sequence[Mapping[str, Any]]) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """Tells nobody."""

    def on_start(self, records: Sequence[Mapping[str, Any]]) -> None:
        return None

    def on_step(self, report: StepReport) -> None:
        return None

    def on_epoch(self, record: dict[str, Any]) -> None:
        return None


def require_board(options: TrainOptions) -> None:
    """Raise :class:`InputError` where figures for TensorBoard are asked for and cannot be written."""
    if options.tensorboard:
        _writer()


def tensorboard(directory: Path | None) -> AbstractContextManager[Any]:
    """Where TensorBoard's figures go; without a directory, a stand-in that ignores them."""
    if directory is None:
        return nullcontext(_NoBoard())
    board: AbstractContextManager[Any] = _writer()(str(directory / "tensorboard"))
    return board


def _writer() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs a package", hint="pip install tensorboard") from error


class _NoBoard:
    def add_scalar(self, *_: Any) -> None:
        return None
