"""``bench``: is the compact network faster, and by how much of what its multiply-accumulates promise?"""

from __future__ import annotations

import json as codec
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdc_fx.cli.options import Json, ModelAgain, Overwrite, ProviderOption, choose, open_recipe, reported, require_new
from pdc_fx.directory import ONNX, REPORT
from pdc_fx.errors import InputError, PdcError

if TYPE_CHECKING:
    from pdc_fx.export.benchmark import BenchmarkReport
    from pdc_fx.export.timing.benchmark_torch import TorchReport


@reported
def bench(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|DENSE", help="An output directory of 'compress', or a dense ONNX file.")
    ],
    compact: Annotated[
        Path | None, typer.Argument(metavar="[COMPACT]", help="With a dense ONNX file: the compact one.")
    ] = None,
    model: ModelAgain = None,
    provider: ProviderOption = "auto",
    batch_size: Annotated[
        list[int] | None, typer.Option("-b", "--batch-size", min=1, help="May be repeated.  \\[default: 1, 8, 32]")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each model and batch size.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before those.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors by default.")] = None,
    torch: Annotated[bool, typer.Option("--torch", help="PyTorch, too: eager and torch.compile.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Keep the figures as JSON here.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Time the dense against the compact network in ONNX Runtime, by turns, and say how much of the MAC ratio arrives.

    For a DIR the figures are also kept there, as benchmark.json and in report.html.
    """
    from pdc_fx.artifacts import benchmark_record
    from pdc_fx.cli.render import err, print_json
    from pdc_fx.cli.render_bench import print_benchmark
    from pdc_fx.export.benchmark import benchmark
    from pdc_fx.files import replace_file, scratch_folder

    _require_pair(source, compact, model, torch)
    if output is not None:
        _require_writable(output, overwrite)
    choose(provider)

    def progress(what: str) -> None:
        err.print(f"timing: {what} ...", markup=False)

    counts: dict[str, Any] = {
        "batch_sizes": batch_size or (1, 8, 32),
        "runs": runs,
        "warmup": warmup,
        "threads": threads,
    }
    engines: list[TorchReport] = []
    with scratch_folder() as scratch:
        pair = None
        if compact is None:
            pair = _Pair(source, model)
            progress("exporting the dense network")
            files = pair.export_dense(scratch / "dense.onnx"), pair.onnx
        else:
            files = source, compact
        report = benchmark(
            *files, **counts, provider=provider, macs=pair.macs if pair else None, details=True, progress=progress
        )
    if torch and pair is not None:
        engines = pair.in_torch(report.provider, counts, progress)
    result = benchmark_record(report, "exported from the recipe" if pair else str(source), engines)
    if json:
        print_json(result)
    else:
        print_benchmark(str(compact or source), report, engines)
    if output is not None:
        replace_file(output, (codec.dumps(result, indent=1) + "\n").encode())
    if pair is not None:
        _keep(source, result, report, engines)


def _keep(directory: Path, result: dict[str, Any], report: BenchmarkReport, engines: Sequence[TorchReport]) -> None:
    """Put the figures where the directory's page shows them. They have been printed: where they cannot be kept, that is a note."""
    from pdc_fx.artifacts import write_benchmark, write_text
    from pdc_fx.cli.render import err
    from pdc_fx.export.pages.speed import with_speed

    try:
        write_benchmark(directory, result)
        page = directory / REPORT
        if page.is_file():
            write_text(page, with_speed(page.read_bytes().decode(), report, engines))
    except (PdcError, OSError, UnicodeDecodeError) as error:
        err.print(f"note: the figures are not in {directory / REPORT}: {error}", soft_wrap=True, markup=False)


def _require_pair(source: Path, compact: Path | None, model: str | None, torch: bool) -> None:
    """A directory alone, or two files."""
    if compact is None:
        if source.is_file():
            raise InputError("one file cannot be compared", where=str(source), hint="give the compact ONNX file, too")
        if not source.is_dir():
            raise InputError("there is no such directory", where=str(source), hint="give the one that 'compress' wrote")
        return
    if source.is_dir() or compact.is_dir():
        raise InputError(
            "a directory holds both networks", where=f"{source} {compact}", hint="give DIR alone, or two ONNX files"
        )
    if model is not None or torch:
        option = "--model" if model is not None else "--torch"
        raise InputError(f"{option} needs an output directory", hint="give DIR instead of two ONNX files")


def _require_writable(output: Path, overwrite: bool) -> None:
    """Asked before anything is timed."""
    from pdc_fx.files import is_replaceable

    require_new(output, overwrite)
    folder = output.absolute().parent
    if not is_replaceable(output) or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("the file cannot be written", where=str(output), hint="choose another with -o")


class _Pair:
    """The two networks of an output directory; the dense one gets the weights of the compact one, tied."""

    def __init__(self, directory: Path, model: str | None) -> None:
        from pdc_fx.loading import require_unchanged
        from pdc_fx.passes.surgery import expand
        from pdc_fx.trace import zeros_of

        recipe, make = open_recipe(directory, model)
        require_unchanged(directory)
        self.onnx, self.example = directory / ONNX, zeros_of(recipe.plan.groups.inputs)
        self.macs = recipe.plan.macs_of_one
        self.dense = make().eval()
        self.compact = recipe.compact(self.dense)
        expand(self.compact, self.dense, recipe.plan)

    def export_dense(self, path: Path) -> Path:
        """The dense network as an ONNX file."""
        from pdc_fx.export.onnx import export_onnx

        return export_onnx(self.dense, self.example, path).path

    def in_torch(self, provider: str, counts: dict[str, Any], progress: Any) -> list[Any]:
        """Eager, and compiled."""
        import torch

        from pdc_fx.export.timing.benchmark_torch import benchmark_torch

        device = "cuda" if provider != "cpu" and torch.cuda.is_available() else "cpu"
        return [
            benchmark_torch(
                self.dense,
                self.compact,
                self.example,
                **counts,
                macs=self.macs,
                compiler=compiler,
                device=device,
                progress=progress,
            )
            for compiler in (None, lambda module: torch.compile(module, dynamic=False))
        ]
