"""One export before it happens: the model, its arguments, and what its tensors and their varying dimensions are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pdc_fx.errors import ExportError, InputError, TraceError
from pdc_fx.export.inputs import (
    batch_size,
    has_listed_images,
    input_tensors,
    is_batched,
    other_values,
    output_tensors,
    renamed,
    resized,
    run_model,
)
from pdc_fx.passes.compare import larger_images

BATCH, HEIGHT, WIDTH = "batch", "height", "width"
"""Names of the dynamic dimensions in the ONNX file."""

Axes = Mapping[str, Mapping[int, str]]
"""Input -> its dimensions that vary and their names."""


@dataclass(frozen=True)
class Call:
    """One export.

    Attributes:
        inputs, outputs: the tensors of one call by their names in the ONNX file.
        opset: version of ONNX's operator set.
        batch: size of the batch in ``inputs``; None if it is fixed.
        axes: the dimensions that vary, for each input.
        notes: what the user should know.
    """

    model: nn.Module
    args: tuple[Any, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    opset: int
    batch: int | None
    axes: Axes
    notes: tuple[str, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether any dimension does."""
        return any(self.axes.values())


def prepare(
    model: nn.Module,
    args: tuple[Any, ...],
    opset: int,
    dynamic_batch: bool,
    dynamic_size: bool = False,
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> Call:
    """Run the model once, to learn what it returns. A batch of 1 is doubled: torch.export takes a 1 for a constant.

    Raises:
        InputError: names that are too many, too few or not unique; images of varying size where no input is an image.
        TraceError: the model does not run on ``args``.
        ExportError: it returns no tensor, or something else beside tensors.
    """
    listed = has_listed_images(args)
    batch = batch_size(args, input_tensors(model, args)) if dynamic_batch else None
    if batch is not None and batch < 2:
        args = resized(args, 2, batch)
        batch = 2
    inputs = renamed(input_tensors(model, args), names[0], "input")
    result = run_model(model, args)
    outputs = output_tensors(result, inputs)
    if not outputs:
        raise ExportError("the model returns no tensor", where=type(model).__name__)
    if others := other_values(result):
        what = f"the model returns values that are no tensors: {', '.join(others)}"
        raise ExportError(what, where=type(model).__name__, hint="return tensors, in tuples, lists or dicts")
    outputs = renamed(outputs, names[1], "output")
    _require_unique([*inputs, *outputs])
    axes = {name: _axes(tensor, batch, dynamic_size and not listed) for name, tensor in inputs.items()}
    if dynamic_size:
        _require_any_size(model, args, axes, listed)
    notes = (f"made for {len(inputs)} image{'s' * (len(inputs) > 1)} of this size",) if listed else ()
    return Call(model, args, inputs, outputs, opset, batch, axes, notes)


def _axes(tensor: Tensor, batch: int | None, dynamic_size: bool) -> dict[int, str]:
    """The dimensions that vary: the first, if it is the batch, and the last two of an image or a video."""
    first = {0: BATCH} if is_batched(tensor, batch) else {}
    rank = tensor.dim()
    return first | ({rank - 2: HEIGHT, rank - 1: WIDTH} if dynamic_size and rank >= 4 else {})


def _require_any_size(model: nn.Module, args: tuple[Any, ...], axes: Axes, listed: bool) -> None:
    """torch.export takes a model that flattens a map for one that demands a product of height and width. So it is run."""
    why = "images in a list are exported at one size" if listed else "no input is a batch of images"
    hint = "leave dynamic_size (--dynamic-size) out for this model"
    if not any(HEIGHT in names.values() for names in axes.values()):
        raise InputError("height and width cannot vary", where=why, hint=hint)
    try:
        run_model(model, larger_images(args))
    except TraceError as error:
        raise ExportError(f"height and width cannot vary: {error.what}", where=error.where, hint=hint) from error


def _require_unique(names: Sequence[str]) -> None:
    """Inputs and outputs are values of one graph."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not all(names):
        what = f"two inputs or outputs have one name: {twice[0]!r}" if twice else "an input or output has no name"
        raise InputError(what, where=", ".join(names), hint="give each a name of its own (--input-name, --output-name)")
    if odd := [name for name in names if not name.isprintable()]:
        raise InputError(
            f"the name of an input or output holds what cannot be printed: {odd[0]!a}", hint="take another"
        )


def positional(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` for ``torch.onnx.export``, which takes a dict in the last place for keyword arguments."""
    return (*args, {}) if isinstance(args[-1], dict) else args


def options(call: Call) -> dict[str, Any]:
    """Keyword arguments that both exporters take."""
    return {
        "input_names": list(call.inputs),
        "output_names": list(call.outputs),
        "opset_version": call.opset,
        "verbose": False,
    }
