"""``check``: one model, or with ``--all`` a whole collection of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pdc_fx.cli.options import Classes, Frozen, Json, OptionalModel, Seed, Shapes, Weights, open_model, reported
from pdc_fx.errors import InputError, TraceError

Precision = Literal["float64", "float32", "auto"]

LARGE = 150_000_000
"""Parameters above which ``--dtype auto`` takes float32: a check holds about four copies of the model."""


@reported
def check(
    model: OptionalModel = None,
    weights: Weights = None,
    num_classes: Classes = None,
    input: Shapes = None,
    freeze: Frozen = None,
    seed: Seed = 0,
    dtype: Annotated[
        Precision | None,
        typer.Option(
            help="float64 by default; auto takes float32 for models too large for it, or that do not run in it."
        ),
    ] = None,
    json: Json = False,
    every: Annotated[
        str | None,
        typer.Option("--all", metavar="FAMILY", help="Check every model of torchvision or timm, and write a table."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="GLOB,GLOB", help="With --all: names to check, such as 'resnet*,vgg11'."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="With --all: seconds per model.  \\[default: 600]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --all: processes at a time.  \\[default: 1]")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="With --all: check again what was checked before.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="With --all: where coverage.json and coverage.md go.  \\[default: docs]"),
    ] = None,
) -> None:
    """Can this model be merged exactly? Ties and merges a random half of its channels and measures what that changes.

    Needs no data and no training; the model is not changed.

    With --all every model of a collection is checked, each in a process of its own; an interrupted run goes on where it stopped.
    """
    of_one = {
        "--weights": weights,
        "--num-classes": num_classes,
        "--input": input,
        "--freeze": freeze,
        "--dtype": dtype,
    }
    of_all = {"--only": only, "--timeout": timeout, "--workers": workers, "--fresh": fresh or None, "--output": output}
    if every is not None:
        _refuse({"a MODEL": model, **of_one}, "cannot be given together with --all")
        _check_all(
            every,
            output or Path("docs"),
            only or "*",
            600.0 if timeout is None else timeout,
            workers or 1,
            fresh,
            seed,
            json,
        )
    else:
        _refuse(of_all, "needs --all")
        if model is None:
            raise InputError("say which model", hint="give a MODEL such as torchvision:resnet18, or --all torchvision")
        _check_one(model, weights, num_classes, input, freeze, seed, dtype or "float64", json)


def _refuse(options: dict[str, Any], why: str) -> None:
    given = next((name for name, value in options.items() if value not in (None, [])), None)
    if given is not None:
        raise InputError(f"{given} {why}", hint="'pdc-fx check --help' says what goes together")


def _check_one(
    model: str,
    weights: Path | None,
    num_classes: int | None,
    input: list[str] | None,
    freeze: list[str] | None,
    seed: int,
    dtype: Precision,
    json: bool,
) -> None:
    from pdc_fx.cli.render import print_certificate, print_json

    loaded, example = open_model(model, weights, num_classes, input)
    certificate = _certificate(loaded.model, example, dtype, seed=seed, name=model, frozen=tuple(freeze or ()))
    if json:
        print_json(certificate.to_dict())
    else:
        print_certificate(certificate)
    if not certificate.passed:
        raise typer.Exit(1)


def _certificate(module: Any, example: Any, dtype: Precision, **options: Any) -> Any:
    import torch

    from pdc_fx.passes.check import check as run_check

    if dtype != "auto":
        return run_check(module, example, dtype=getattr(torch, dtype), **options)
    if sum(parameter.numel() for parameter in module.parameters()) <= LARGE:
        try:
            return run_check(module, example, dtype=torch.float64, **options)
        except TraceError:
            pass  # some forward passes make float32 tensors of their own
    return run_check(module, example, dtype=torch.float32, **options)


def _check_all(
    family: str, output: Path, only: str, timeout: float, workers: int, fresh: bool, seed: int, json: bool
) -> None:
    from rich.markup import escape

    from pdc_fx.cli.render import err, out, print_json
    from pdc_fx.coverage import DATA, PAGE, Checked, cover

    colours = {"passed": "green", "refused": "yellow", "failed": "red", "timeout": "red"}

    def report(checked: Checked, number: int, total: int) -> None:
        error = f"{checked.certificate['max_rel_error']:.1e} " if checked.passed and checked.certificate else ""
        err.print(
            f"{number:>3}/{total} {checked.model.partition(':')[2]} [{colours[checked.result]}]{checked.result}[/] "
            f"{error}{checked.seconds:.1f} s {escape(checked.reason)}".rstrip(),
            soft_wrap=True,
        )

    coverage = cover(family, output, only=only, timeout=timeout, workers=workers, fresh=fresh, seed=seed, report=report)
    counts = coverage.counts()
    if json:
        models = {checked.model: checked.result for checked in coverage.models.values()}
        files = {"json": str(output / DATA), "page": str(output / PAGE)}
        print_json({"family": family, "counts": counts, "models": models, **files})
    else:
        summary = ", ".join(f"{number} {result}" for result, number in counts.items())
        out.print(f"models: {summary}")
        out.print(f"see {escape(str(output / PAGE))}")
    if counts["failed"] or counts["timeout"]:
        raise typer.Exit(1)
