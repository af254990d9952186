"""``pdc-fx demo``: the whole pipeline on data that come with it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pdc_fx.cli.options import Json, Overwrite, Seed, reported


@reported
def demo(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Keep the output directory here.")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """The whole pipeline on scikit-learn's bundled digits, in about a minute on two cores."""
    from pdc_fx import demo as demonstration
    from pdc_fx.cli.render import (
        TrainingProgress,
        delivery_rows,
        err,
        out,
        percent,
        print_comparisons,
        print_json,
        result_table,
        shown,
    )
    from pdc_fx.words import quantity

    err.print("training a teacher on 1,437 digits, then compressing it to a third of its MACs ...")
    with TrainingProgress(demonstration.EPOCHS) if err.is_terminal else nullcontext() as progress:
        result = demonstration.run(output, progress, overwrite=overwrite, seed=seed)
    timing = result.timing.timings[0]
    if json:
        print_json({**result.certificate, "latency": result.timing.to_json()})
        if not result.certificate["passed"]:
            raise typer.Exit(1)
        return
    rows = delivery_rows(result.certificate)
    rows.insert(
        1,
        (
            "accuracy, ONNX Runtime",
            percent(result.dense_onnx_accuracy),
            percent(result.certificate["accuracy"]["onnx"]),
        ),
    )
    rows.append(("ONNX file", f"{quantity(result.dense_bytes)}B", f"{quantity(result.compact_bytes)}B"))
    rows.append(("latency, batch 1", f"{timing.dense.median_ms:.3f} ms", f"{timing.compact.median_ms:.3f} ms"))
    out.print(result_table(rows, "digits: teacher and compact network"))
    print_comparisons(result.certificate)
    if not result.certificate["passed"]:
        raise typer.Exit(1)
    if output is not None:
        out.print(f"kept in {shown(str(output))}")
