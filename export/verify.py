"""Does the ONNX file compute what the PyTorch model computes? And if not, which node is the first that differs?"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pdc_fx.directory import PRECISION_KEY
from pdc_fx.errors import ArtifactError, InputError, TraceError, VerificationError
from pdc_fx.export.call import BATCH, WIDTH
from pdc_fx.export.difference import first_difference, ratio, relative_error
from pdc_fx.export.inputs import (
    batch_size,
    call_arguments,
    input_tensors,
    on_device_of,
    output_tensors,
    renamed,
    resized,
    run_model,
)
from pdc_fx.export.rows import in_order
from pdc_fx.export.session import make_session, run_session
from pdc_fx.export.store import EXTERNAL_ABOVE
from pdc_fx.passes.compare import distance, in_precision, larger_images, random_inputs
from pdc_fx.trace import Inputs, evaluating

TOLERANCES = {"float32": 1e-4, "float16": 2e-2}
"""Largest relative error by the precision the file computes in; half precision has 11 bits, and errors add up over layers."""

_NODE_TOLERANCE = 0.1
"""Part of the tolerance a single node may use up: a deviation is caught where it starts, not where it has grown."""


@dataclass(frozen=True)
class OutputComparison:
    """One output of one batch. Errors are infinite where the two cannot be subtracted; ``problem`` says why.

    ``moved`` counts the rows that stand elsewhere than in PyTorch, since their scores tie (:mod:`pdc_fx.export.rows`).
    """

    name: str
    batch: int
    shape: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    problem: str | None = None
    moved: int = 0


@dataclass(frozen=True)
class OnnxComparison:
    """PyTorch in float32 and eval mode against ONNX Runtime on random inputs.

    ``max_rel_error`` is the largest absolute error of an output over the largest absolute value of the reference, the
    worst over all outputs and batches; ``first_difference`` names the node where the two part. ``precision`` is that of the
    file; ``notes`` say what limits the comparison.
    """

    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    batches: tuple[int, ...]
    providers: tuple[str, ...]
    first_difference: str | None
    outputs: tuple[OutputComparison, ...]
    precision: str = "float32"
    notes: tuple[str, ...] = ()

    def ensure(self) -> OnnxComparison:
        """This comparison, if it passed.

        Raises:
            VerificationError: it did not; the message holds the error and the first node that differs.
        """
        if self.passed:
            return self
        raise VerificationError(
            f"the ONNX file does not compute what the model does: relative error {self.max_rel_error:.2g}, "
            f"tolerance {self.tolerance:g}",
            where=self.first_difference or "",
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; infinite errors become null, which JSON can hold."""
        plain = dataclasses.asdict(self)
        for part in (plain, *plain["outputs"]):
            for key in ("max_abs_error", "max_rel_error"):
                part[key] = part[key] if np.isfinite(part[key]) else None
        return plain


def verify_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 3),
    rounds: int = 2,
    seed: int = 0,
    tolerance: float | None = None,
    provider: str = "cpu",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> OnnxComparison:
    """Compare a model with its ONNX file on random inputs.

    Args:
        model: the PyTorch model; it runs in eval mode and is left as it was.
        path: the ONNX file, its inputs and outputs named as :func:`~pdc_fx.export.onnx.export_onnx` names them.
        example_inputs: as for the export. Floating-point values are replaced by random ones (:func:`~pdc_fx.passes.compare.random_inputs`).
        batch_sizes: sizes of the batches to run; for a file with a fixed batch size give that one alone. Images in a list
            are as many as in ``example_inputs``.
        rounds: batches of each size. Where the file takes images of any size, every second is of larger images.
        seed: of the random inputs, which are others in every batch.
        tolerance: largest relative error to pass: largest absolute error over largest absolute value of an output; that of
            :data:`TOLERANCES` by default.
        provider: a key of :data:`~pdc_fx.export.session.PROVIDERS`.
        input_names, output_names: names in the file, if others were given to the export.

    Raises:
        ArtifactError: the file is missing, damaged or not ONNX.
        InputError: no batch sizes, or one below 1; no rounds; a negative tolerance; names that do not fit.
        TraceError: the model does not run on the example inputs.

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from pdc_fx.export.onnx import export_onnx
    >>> model, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = export_onnx(model, example, Path(directory) / "model.onnx").path
    ...     right = verify_onnx(model, path, example)
    ...     _ = nn.init.zeros_(model[0].bias)
    ...     wrong = verify_onnx(model, path, example)
    >>> right.passed, wrong.passed, "Conv node" in wrong.first_difference
    (True, False, True)
    """
    if not batch_sizes or min(batch_sizes) < 1 or rounds < 1 or not (tolerance is None or tolerance >= 0):
        raise InputError(
            "batch sizes and rounds must be positive, the tolerance not negative",
            where=f"{batch_sizes}, {rounds}, {tolerance}",
        )
    example = on_device_of(model, call_arguments(example_inputs))
    session = make_session(path, provider=provider)
    halved = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    own = "float16" if halved else "float32"
    precision = session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY, own)
    allowed = TOLERANCES.get(precision, TOLERANCES["float32"]) if tolerance is None else tolerance
    pair = _Pair(model, session, input_names, output_names)
    results: list[OutputComparison] = []
    difference: str | None = None
    notes: list[str] = []
    for number, (batch, args) in enumerate(_batches(session, model, example, batch_sizes, rounds)):
        args = random_inputs(args, seed + number)
        compared = pair.compare(args, batch, allowed)
        results += compared
        if difference is None and not all(_passes(result, allowed) for result in compared):
            difference = _explain(pair, path, args, compared, allowed)
            rounding = pair.rounding(args)
            if rounding is not None and allowed / 10 < rounding < float("inf"):
                notes.append(
                    f"PyTorch's own float32 is a relative {rounding:.1e} from its float64 on this input, {allowed:g} is allowed"
                )
    return OnnxComparison(
        passed=all(_passes(result, allowed) for result in results),
        max_abs_error=max(result.max_abs_error for result in results),
        max_rel_error=max(result.max_rel_error for result in results),
        tolerance=allowed,
        batches=tuple(dict.fromkeys(result.batch for result in results)),
        providers=tuple(session.get_providers()),
        first_difference=difference,
        outputs=tuple(results),
        precision=precision,
        notes=(*notes, *_notes(results)),
    )


def _batches(
    session: Any, model: nn.Module, example: tuple[Any, ...], batch_sizes: Sequence[int], rounds: int
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Size and arguments of every batch to run."""
    inputs = input_tensors(model, example)
    example_batch = batch_size(example, inputs)
    any_size = any(value.shape and value.shape[-1] == WIDTH for value in session.get_inputs())
    for batch in batch_sizes:
        args = example if example_batch is None else resized(example, batch, example_batch)
        for number in range(rounds):
            count = batch if example_batch is not None else len(inputs)
            yield count, larger_images(args) if any_size and number % 2 else args


def _notes(results: Sequence[OutputComparison]) -> Iterator[str]:
    if not any(math.prod(result.shape) for result in results):
        yield "every output was empty on random inputs, so that no values were compared"
    if moved := max(result.moved for result in results):
        yield f"up to {moved} rows of equal score stand in another order than in PyTorch"


def _passes(result: OutputComparison, tolerance: float) -> bool:
    return result.problem is None and result.max_rel_error <= tolerance


@dataclass(frozen=True)
class _Pair:
    """Both sides of the comparison."""

    model: nn.Module
    session: Any
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None

    def feed(self, args: tuple[Any, ...]) -> dict[str, NDArray[Any]]:
        """The tensors of one call by the names of the file."""
        tensors = renamed(input_tensors(self.model, args), self.input_names, "input")
        return {name: _array(value) for name, value in tensors.items()}

    def expected(self, args: tuple[Any, ...]) -> dict[str, NDArray[Any]]:
        """What PyTorch computes, by the names of the file."""
        with evaluating(self.model):
            tensors = output_tensors(run_model(self.model, args), input_tensors(self.model, args))
        return {name: _array(value) for name, value in renamed(tensors, self.output_names, "output").items()}

    def rounding(self, args: tuple[Any, ...]) -> float | None:
        """Relative error of PyTorch's own float32, the worst over all outputs; None where the model does not run in float64."""
        try:
            model, inputs = in_precision(self.model, args)
            exact = dataclasses.replace(self, model=model).expected(inputs)
        except TraceError:
            return None
        pairs = [(value, exact[name]) for name, value in self.expected(args).items()]
        if any(value.shape != other.shape for value, other in pairs):
            return None
        return max(relative_error(value, other) for value, other in pairs)

    def compare(self, args: tuple[Any, ...], batch: int, tolerance: float) -> list[OutputComparison]:
        """All outputs of one batch; an output that only one side has is a result with a problem."""
        feed = self.feed(args)
        expected = self.expected(args)
        try:
            actual = run_session(self.session, feed)
        except InputError as error:
            return [_failed(name, batch, value, str(error)) for name, value in expected.items()]
        rows = [name for name in self._rows() if name in expected]
        placed, moved = (
            in_order({name: expected[name] for name in rows}, {name: actual[name] for name in rows}, tolerance)
            if rows
            else ({}, 0)
        )
        missing = [
            _failed(name, batch, expected[name], "not in the ONNX file") for name in expected.keys() - actual.keys()
        ]
        extra = [_failed(name, batch, actual[name], "not in the model") for name in actual.keys() - expected.keys()]
        shared = [
            _output(name, batch, expected[name], placed.get(name, actual[name]), moved if name in placed else 0)
            for name in expected
            if name in actual
        ]
        return [*shared, *missing, *extra]

    def _rows(self) -> list[str]:
        """Outputs with as many rows as the model finds objects: that dimension is open, and is not the batch."""
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        return [name for name, shape in shapes.items() if shape and not isinstance(shape[0], int) and shape[0] != BATCH]


def _output(name: str, batch: int, expected: NDArray[Any], actual: NDArray[Any], moved: int = 0) -> OutputComparison:
    if expected.shape != actual.shape:
        return _failed(name, batch, actual, f"shape {actual.shape}, expected {expected.shape}")
    for side, value, other in (("PyTorch", expected, actual), ("ONNX Runtime", actual, expected)):
        finite = np.isfinite(value)
        if finite.size and not finite.any():
            return _failed(name, batch, actual, f"{side} returns no finite number")
        if (np.isfinite(other) & ~finite).any():
            return _failed(name, batch, actual, f"{side} returns values that are not finite")
    error, size = distance(torch.as_tensor(expected), torch.as_tensor(actual))
    return OutputComparison(name, batch, actual.shape, error, ratio(error, size), moved=moved)


def _failed(name: str, batch: int, value: NDArray[Any], problem: str) -> OutputComparison:
    return OutputComparison(name, batch, value.shape, float("inf"), float("inf"), problem)


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _explain(
    pair: _Pair,
    path: str | os.PathLike[str],
    args: tuple[Any, ...],
    compared: Sequence[OutputComparison],
    tolerance: float,
) -> str:
    """The first node that differs, if the file runs at all; else, or if every node agrees, what is wrong outside."""
    import onnx

    problems = [f"output {result.name!r}: {result.problem}" for result in compared if result.problem is not None]
    proto = onnx.load(os.fspath(path))
    if proto.ByteSize() > EXTERNAL_ABOVE:
        return "; ".join([*problems, "the file is too large to look for the first node"])
    try:
        difference = first_difference(pair.model, proto, args, pair.feed(args), tolerance * _NODE_TOLERANCE)
    except InputError as error:
        return "; ".join(problems) or str(error)
    provider = pair.session.get_providers()[0]
    return "; ".join([*([str(difference)] if difference is not None else []), *problems]) or (
        "no single node differs: an output is taken from another node than in the model"
        if provider == "CPUExecutionProvider"
        else f"every node agrees on the CPU: it is the {provider} that computes something else"
    )


def accuracy_onnx(
    path: str | os.PathLike[str],
    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.integer[Any]]]],
    *,
    provider: str = "cpu",
    threads: int | None = None,
) -> float:
    """Top-1 accuracy, 0 to 1, of an ONNX classifier.

    Args:
        path: a file with one input; the output ``logits``, or else ``out``, or else the first, holds the logits (``N x classes``).
        batches: pairs of images (float32, ``N x C x H x W``) and labels (integers, ``N``).
        provider: a key of :data:`~pdc_fx.export.session.PROVIDERS`.
        threads: threads of ONNX Runtime; None for all processors.

    Raises:
        ArtifactError: the file is missing, damaged, or not a classifier with one input.
        InputError: no images at all, labels that do not fit the images, or images that do not fit the file.
    """
    session = make_session(path, provider=provider, threads=threads)
    if len(session.get_inputs()) != 1:
        raise ArtifactError("the model takes more than one input", where=str(path))
    name = session.get_inputs()[0].name
    correct = total = 0
    for images, labels in batches:
        outputs = run_session(session, {name: images})
        logits = outputs.get("logits", outputs.get("out", next(iter(outputs.values()))))
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            where = f"labels {labels.shape}, logits {logits.shape}"
            raise InputError("each image needs one label and one row of logits", where=where)
        correct += int((logits.argmax(axis=1) == labels).sum())
        total += len(labels)
    if not total:
        raise InputError("there are no images to take the accuracy on")
    return correct / total
