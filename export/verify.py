"""Does the ONNX file compute what the PyTorch model computes? And if not, which node is the first that differs?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pdc_fx.errors import ArtifactError, InputError, VerificationError
from pdc_fx.export.difference import first_difference, relative_error
from pdc_fx.export.inputs import (
    batch_size,
    call_arguments,
    input_tensors,
    on_device_of,
    output_tensors,
    resized,
    run_model,
)
from pdc_fx.export.session import make_session, run_session
from pdc_fx.passes.compare import random_inputs
from pdc_fx.trace import Inputs, evaluating

_NODE_TOLERANCE = 0.1
"""Part of the tolerance a single node may use up: a deviation is caught where it starts, not where it has grown."""


@dataclass(frozen=True)
class OutputComparison:
    """One output at one batch size. Errors are infinite where the two cannot be subtracted; ``problem`` says why."""

    name: str
    batch: int
    shape: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    problem: str | None = None


@dataclass(frozen=True)
class OnnxComparison:
    """PyTorch in float32 and eval mode against ONNX Runtime on random inputs.

    ``max_rel_error`` is the largest absolute error of an output over the largest absolute value of the reference, the
    worst over all outputs and batches; ``first_difference`` names the node where the two part.
    """

    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    batches: tuple[int, ...]
    providers: tuple[str, ...]
    first_difference: str | None
    outputs: tuple[OutputComparison, ...]

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
    seed: int = 0,
    tolerance: float = 1e-4,
    provider: str = "cpu",
) -> OnnxComparison:
    """Compare a model with its ONNX file on random inputs.

    Args:
        model: the PyTorch model; it runs in eval mode and is left as it was.
        path: the ONNX file, its inputs and outputs named as :func:`~pdc_fx.export.onnx.export_onnx` names them.
        example_inputs: as for the export. Floating-point values are replaced by standard normal numbers.
        batch_sizes: sizes of the batches to run; for a file with a fixed batch size give that one alone.
        seed: of the random inputs.
        tolerance: largest relative error to pass: largest absolute error over largest absolute value of an output.
        provider: a key of :data:`~pdc_fx.export.session.PROVIDERS`.

    Raises:
        ArtifactError: the file is missing, damaged or not ONNX.
        InputError: no batch sizes, or one below 1; a negative tolerance.
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
    if not batch_sizes or min(batch_sizes) < 1 or not tolerance >= 0:
        raise InputError(
            "batch sizes must be positive, the tolerance not negative", where=f"{batch_sizes}, {tolerance}"
        )
    example = on_device_of(model, call_arguments(example_inputs))
    session = make_session(path, provider=provider)
    example_batch = batch_size(input_tensors(model, example))
    results: list[OutputComparison] = []
    difference: str | None = None
    for batch in batch_sizes:
        args = random_inputs(resized(example, batch, example_batch), seed)
        compared = _compare(model, session, args, batch)
        results += compared
        if difference is None and not all(_passes(result, tolerance) for result in compared):
            difference = _explain(model, path, args, compared, tolerance)
    return OnnxComparison(
        passed=all(_passes(result, tolerance) for result in results),
        max_abs_error=max(result.max_abs_error for result in results),
        max_rel_error=max(result.max_rel_error for result in results),
        tolerance=tolerance,
        batches=tuple(batch_sizes),
        providers=tuple(session.get_providers()),
        first_difference=difference,
        outputs=tuple(results),
    )


def _passes(result: OutputComparison, tolerance: float) -> bool:
    return result.problem is None and result.max_rel_error <= tolerance


def _compare(model: nn.Module, session: Any, args: tuple[Any, ...], batch: int) -> list[OutputComparison]:
    """All outputs at one batch size; an output that only one side has is a result with a problem."""
    inputs = input_tensors(model, args)
    with evaluating(model):
        expected = {name: _array(value) for name, value in output_tensors(run_model(model, args), inputs).items()}
    try:
        actual = run_session(session, {name: _array(value) for name, value in inputs.items()})
    except InputError as error:
        return [_failed(name, batch, value, str(error)) for name, value in expected.items()]
    missing = [_failed(name, batch, expected[name], "not in the ONNX file") for name in expected.keys() - actual.keys()]
    extra = [_failed(name, batch, actual[name], "not in the model") for name in actual.keys() - expected.keys()]
    shared = [_output(name, batch, expected[name], actual[name]) for name in expected if name in actual]
    return [*shared, *missing, *extra]


def _output(name: str, batch: int, expected: NDArray[Any], actual: NDArray[Any]) -> OutputComparison:
    if expected.shape != actual.shape:
        return _failed(name, batch, actual, f"shape {actual.shape}, expected {expected.shape}")
    for side, value in (("PyTorch", expected), ("ONNX Runtime", actual)):
        if not np.isfinite(value).all():
            return _failed(name, batch, actual, f"{side} returns values that are not finite")
    error = float(np.max(np.abs(actual.astype(np.float64) - expected))) if actual.size else 0.0
    return OutputComparison(name, batch, actual.shape, error, relative_error(actual, expected))


def _failed(name: str, batch: int, value: NDArray[Any], problem: str) -> OutputComparison:
    return OutputComparison(name, batch, value.shape, float("inf"), float("inf"), problem)


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _explain(
    model: nn.Module,
    path: str | os.PathLike[str],
    args: tuple[Any, ...],
    compared: Sequence[OutputComparison],
    tolerance: float,
) -> str:
    """The first node that differs, if the file runs at all; else, or if every node agrees, what is wrong outside."""
    import onnx

    problems = [f"output {result.name!r}: {result.problem}" for result in compared if result.problem is not None]
    feed = {name: _array(value) for name, value in input_tensors(model, args).items()}
    try:
        difference = first_difference(model, onnx.load(os.fspath(path)), args, feed, tolerance * _NODE_TOLERANCE)
    except InputError as error:
        return "; ".join(problems) or str(error)
    return "; ".join([*([str(difference)] if difference is not None else []), *problems]) or (
        "no single node differs: an output is taken from another node than in the model"
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
        path: a file with one input; its first output holds the logits (``N x classes``).
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
        logits = next(iter(run_session(session, {name: images}).values()))
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            where = f"labels {labels.shape}, logits {logits.shape}"
            raise InputError("each image needs one label and one row of logits", where=where)
        correct += int((logits.argmax(axis=1) == labels).sum())
        total += len(labels)
    if not total:
        raise InputError("there are no images to take the accuracy on")
    return correct / total
