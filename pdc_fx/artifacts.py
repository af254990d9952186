"""What a compression leaves on disk, without a pickle.

:mod:`pdc_fx.directory` says which files there are, and :mod:`pdc_fx.loading` reads them back. A directory is made complete beside
its place and then renamed, so that under its name there is either nothing or all of it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pdc_fx.directory import (
    BENCHMARK,
    CERTIFICATE,
    CERTIFICATE_KEY,
    DENSE_MACS_KEY,
    FORMAT,
    KEYS,
    MACS_KEY,
    METRICS,
    ONNX,
    RECIPE,
    RECIPE_KEY,
    REPORT,
    VERSION_KEY,
    WEIGHTS,
)
from pdc_fx.errors import ExportError, InputError, VerificationError
from pdc_fx.files import replace_file, sha256, way_out
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.compare import Comparison
from pdc_fx.passes.rewrite import ChannelAddition, analysis_for, describe
from pdc_fx.staging import Staging
from pdc_fx.trace import Inputs, as_arguments

if TYPE_CHECKING:
    from pdc_fx.data import ImageData
    from pdc_fx.export.benchmark import BenchmarkReport
    from pdc_fx.export.timing.benchmark_torch import TorchReport


@dataclass(frozen=True)
class Compressed:
    """The result of a compression.

    Attributes:
        model: the compact network, in eval mode.
        tied: the network at full width that computes the same.
        plan: the clusters that were merged.
        example_inputs: what both were run on.
        exactness: tied against compact in float64, as :func:`pdc_fx.compress` measured it; :func:`save` measures it where it is None.
        accuracy: top-1, 0 to 1, by name (``teacher``, ``tied``, ``compact``; ``onnx`` in a certificate); empty without data.
        metrics: one record per epoch, among others of what was trained, and how; :data:`pdc_fx.directory.METRICS` has the kinds.
        source: the model spec, the number of classes, the data and the command line, as far as known.
        original: the network before compression, whose filters the report compares; None where it is not at hand.
    """

    model: nn.Module
    tied: nn.Module
    plan: ClusterPlan
    example_inputs: Inputs
    exactness: Comparison | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    original: nn.Module | None = None


def package_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("pdc-fx")
    except PackageNotFoundError:  # run from a source tree
        return "0+source"


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename."""
    replace_file(path, text.encode("utf-8", "backslashreplace"))  # a file's name may hold bytes that are no text


def _sort_header(path: Path) -> None:
    """Safetensors writes metadata in an order that differs from run to run, and with it the file's hash would."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def write_model(compressed: Compressed, directory: Path) -> None:
    """Write weights and recipe into ``directory``."""
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    _require_tensors(compressed.model)
    try:
        (directory / WEIGHTS).touch()
        permissions = (directory / WEIGHTS).stat().st_mode  # of any file made here; safetensors makes a private one
        save_model(compressed.model, str(directory / WEIGHTS), metadata={"format": "pt", "pdc_fx": package_version()})
        _sort_header(directory / WEIGHTS)
        (directory / WEIGHTS).chmod(permissions)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the weights cannot be written: {error}",
            where=str(directory / WEIGHTS),
            hint=way_out(error) if isinstance(error, OSError) else "make room there",
        ) from error
    recipe = {
        "format": FORMAT,
        "pdc_fx": package_version(),
        "result_type": describe(compressed.model),
        **compressed.source,
        "plan": compressed.plan.to_dict(),
    }
    write_text(directory / RECIPE, json.dumps(recipe, indent=1))


def benchmark_record(
    timing: BenchmarkReport, dense: str = "exported from the recipe", engines: Sequence[TorchReport] = ()
) -> dict[str, Any]:
    """What a benchmark leaves for programs; ``dense`` says where the dense network's file came from."""
    return {**timing.to_json(), "dense": dense, "torch": [engine.to_json() for engine in engines]}


def write_benchmark(directory: Path, record: Mapping[str, Any]) -> None:
    """Keep a :func:`benchmark_record` in an output directory."""
    write_text(directory / BENCHMARK, json.dumps(record, indent=1) + "\n")


def onnx_metadata(
    plan: ClusterPlan, source: Mapping[str, Any], recipe_sha256: str, certificate: Mapping[str, Any]
) -> dict[str, str]:
    """What an ONNX file says about itself: strings by key, JSON where they hold more than a word.

    Args:
        source: a recipe, or what goes into one: ``mean``, ``std`` and ``classes``, by which a consumer prepares images and
            names what it finds.
        certificate: a certificate as far as it is known when the file is written.
    """
    comparisons = ("dtype", "precision", "passed", "max_rel_error", "tolerance")
    summary = {
        name: {key: part[key] for key in comparisons if key in part}
        for name in ("tied_vs_compact", "compact_vs_onnx")
        if isinstance(part := certificate.get(name), Mapping)
    }
    if certificate.get("accuracy"):
        summary["accuracy"] = dict(certificate["accuracy"])
    before, after = plan.macs_of_one
    return {
        VERSION_KEY: package_version(),
        RECIPE_KEY: recipe_sha256,
        MACS_KEY: str(after),
        DENSE_MACS_KEY: str(before),
        CERTIFICATE_KEY: json.dumps(summary),
        **{f"{KEYS}{key}": json.dumps(list(source[key])) for key in ("mean", "std", "classes") if source.get(key)},
    }


def onnx_accuracy(data: ImageData, provider: str = "cpu") -> Callable[[Path], float]:
    """A function that measures an ONNX file on the test images."""
    from pdc_fx.data import evaluation_batches
    from pdc_fx.export.verify import accuracy_onnx

    return lambda path: accuracy_onnx(
        path, ((x.numpy(), y.numpy()) for x, y in evaluation_batches(data.test, data)), provider=provider
    )


def _require_tensors(model: nn.Module) -> None:
    """Raise :class:`InputError` where the state of a network is more than tensors, which are all that safetensors holds."""
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"the network keeps a {type(value).__name__} in its state, which no file without a pickle holds",
                where=f"'{name}'",
                hint="let get_extra_state() return a tensor, or leave it out; torch.save keeps it with a pickle",
            )


def require_exportable(model: nn.Module, example_inputs: Inputs) -> None:
    """Raise where a network cannot be delivered, before it is trained.

    Raises:
        ExportError: it cannot become an ONNX file.
        InputError: its state holds more than tensors.
    """
    from pdc_fx.export.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        try:
            _require_tensors(model)
            export_onnx(model, example_inputs, Path(folder) / ONNX)
        except (ExportError, InputError) as error:
            raise type(error)(
                f"training was not begun, since its result could not be delivered: {error.what}",
                where=error.where,
                hint="change the model; or train it in a loop of your own (pdc_fx.tie), which needs no ONNX file of any batch size",
            ) from error


def deliver(
    compressed: Compressed,
    directory: Path,
    onnx_accuracy: Callable[[Path], float] | None = None,
    timed: Callable[[Path], BenchmarkReport] | None = None,
) -> dict[str, Any]:
    """Write every file of an output directory into ``directory``, which exists, and give the certificate.

    ``onnx_accuracy`` measures the ONNX file on the task's data, ``timed`` its speed, for the report. The certificate tells whether all
    comparisons passed; nothing is raised where one did not, so that the caller can keep the evidence.
    """
    from pdc_fx.export.onnx import export_onnx
    from pdc_fx.export.pages.model_graph import model_graph
    from pdc_fx.export.report import render_report
    from pdc_fx.export.verify import verify_onnx

    write_model(compressed, directory)
    exactness = compressed.exactness or _measured(compressed)
    exact = {"tied_vs_compact": {"dtype": "float64", **asdict(exactness)}}
    metadata = onnx_metadata(compressed.plan, compressed.source, sha256(directory / RECIPE), exact)
    info = export_onnx(compressed.model, compressed.example_inputs, directory / ONNX, metadata=metadata)
    onnx = verify_onnx(compressed.model, directory / ONNX, compressed.example_inputs)
    accuracy = dict(compressed.accuracy)
    if onnx_accuracy is not None:
        accuracy["onnx"] = onnx_accuracy(directory / ONNX)
    plan = compressed.plan
    macs_before, macs_after = plan.macs_of_one
    certificate = {
        "passed": exactness.passed and onnx.passed,
        **exact,
        "compact_vs_onnx": {"dtype": "float32", "exporter": info.exporter, "notes": list(info.notes), **onnx.to_json()},
        "accuracy": accuracy,
        "macs_before": macs_before,
        "macs_after": macs_after,
        "params_before": plan.params_before,
        "params_after": sum(p.numel() for p in compressed.model.parameters()),
        "result_type": describe(compressed.model),
        "versions": {"pdc_fx": package_version(), "torch": torch.__version__},
        "files": {
            name: sha256(directory / name) for name in (WEIGHTS, RECIPE, ONNX, *([info.data.name] if info.data else []))
        },
    }
    if "latency" in plan.options:
        keys = ("latency_reduction", "predicted_reduction", "measured_reduction")
        certificate["latency"] = {**plan.options["latency"], **{key: plan.options.get(key) for key in keys}}
    write_text(directory / CERTIFICATE, json.dumps(certificate, indent=1))
    timing = None if timed is None else timed(directory / ONNX)
    page = render_report(
        plan,
        model_graph(analysis_for(compressed.tied, plan, compressed.example_inputs).solution),
        title=str(compressed.source.get("model") or type(compressed.tied).__name__),
        accuracy=accuracy,
        metrics=list(compressed.metrics),
        certificate=certificate,
        command=str(compressed.source.get("command", "")),
        original=None if compressed.original is None else compressed.original.state_dict(),
        timing=timing,
    )
    write_text(directory / REPORT, page)
    if timing is not None:
        write_benchmark(directory, {**benchmark_record(timing, "exported from the teacher"), "compact": ONNX})
    write_text(directory / METRICS, "".join(json.dumps(m) + "\n" for m in compressed.metrics))
    return certificate


def _measured(compressed: Compressed) -> Comparison:
    """How exact the merge was, done once more; :class:`InputError` where the compact network is not what comes out."""
    addition = ChannelAddition(compressed.plan, compressed.example_inputs)
    wanted, found = (dict(named_tensors(network)) for network in (addition(compressed.tied), compressed.model))
    other = [name for name, tensor in wanted.items() if name not in found or not torch.equal(tensor, found[name])]
    if other:
        raise InputError(
            "the compact network is not the merge of the tied one",
            where=f"'{other[0]}'",
            hint="save what rewrite gave, before it is trained on",
        )
    assert addition.comparison is not None
    return addition.comparison


def save(compressed: Compressed, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a complete output directory: weights, recipe, ONNX file, certificate, metrics, report.

    Args:
        compressed: what :func:`pdc_fx.compress` gave, or made of parts of a loop of your own: the compact network, the tied one, the
            plan that ``snap`` gave and the example inputs.
        directory: it must not exist yet; it is there when all of it is written and verified.
        overwrite: replace what is there.

    Returns:
        The directory, absolute.

    Raises:
        InputError: the directory exists, or cannot be written, or the model takes a list or a dict of tensors.
        VerificationError: the ONNX file does not compute what the model does; nothing is left then.

    >>> import tempfile
    >>> import numpy as np
    >>> from pdc_fx.passes.analysis import AnalyzeDependencies
    >>> from pdc_fx import load, rewrite, tie
    >>> net, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8)
    >>> plan = ClusterPlan(AnalyzeDependencies(example)(net).groups, (np.array([0, 0, 1, 1]),))
    >>> plan = tie(net, plan, mode="hard").snap()
    >>> small = rewrite(net, plan, example)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = save(Compressed(small, net, plan, example), Path(folder) / "out")
    ...     print(*sorted(path.name for path in out.iterdir()))
    ...     loaded = load(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), out)
    certificate.json metrics.jsonl model.onnx model.safetensors recipe.json report.html
    >>> loaded[0], bool((loaded[0].weight == small[0].weight).all())
    (Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1)), True)
    """
    if not all(isinstance(argument, torch.Tensor) for argument in as_arguments(compressed.example_inputs)):
        raise InputError(
            "the model is called with more than tensors, of which no recipe could make it again",
            hint="keep its state_dict() and the plan's to_json(), or wrap it in a module that takes tensors",
        )
    with Staging(Path(directory), overwrite=overwrite) as staging:
        require_verified(deliver(compressed, staging.path))
    return staging.publish()


def require_verified(certificate: Mapping[str, Any]) -> None:
    """Raise :class:`VerificationError` unless all comparisons of a certificate passed."""
    if not certificate["passed"]:
        raise VerificationError(
            "the verification failed", where=str(certificate["compact_vs_onnx"]["first_difference"])
        )
