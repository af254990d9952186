"""``export`` and ``verify``: an ONNX file, and whether it computes what the model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdc_fx.cli.options import (
    Classes,
    DataOption,
    Json,
    ModelAgain,
    Overwrite,
    ProviderOption,
    Shapes,
    Weights,
    choose,
    open_images,
    open_model,
    open_recipe,
    reported,
    require_new,
)
from pdc_fx.directory import CERTIFICATE, ONNX, RECIPE, RECIPE_KEY, VERSION_KEY
from pdc_fx.errors import ArtifactError, InputError, VerificationError

if TYPE_CHECKING:
    from pdc_fx.data import ImageSet

Names = list[str] | None


@reported
def export(
    source: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="An output directory of 'compress', or a MODEL.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    weights: Weights = None,
    num_classes: Classes = None,
    input: Shapes = None,
    model: ModelAgain = None,
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operator set, 18 to 25.  \\[default: 18]")
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Fix the batch size.")] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Let height and width vary, where the model allows it.")
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Compute in half precision; inputs and outputs stay in float32.")
    ] = False,
    input_name: Annotated[
        Names, typer.Option("--input-name", help="Name of the input in the file. Repeat it for several, in order.")
    ] = None,
    output_name: Annotated[
        Names, typer.Option("--output-name", help="Name of the output in the file. Repeat it for several, in order.")
    ] = None,
    provider: ProviderOption = "cpu",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write an ONNX file with batch norms folded, verified against PyTorch first: what does not agree is not written."""
    from pdc_fx.cli.render import print_json
    from pdc_fx.export.onnx import DEFAULT_OPSET, export_onnx
    from pdc_fx.export.store import publish, staging_beside
    from pdc_fx.export.verify import verify_onnx

    choose(provider)
    require_new(output, overwrite)
    module, example, metadata = _open_source(source, model, weights, num_classes, input)
    names: dict[str, Any] = {"input_names": input_name, "output_names": output_name}
    with staging_beside(output) as folder:
        info = export_onnx(
            module,
            example,
            folder / output.name,
            opset=DEFAULT_OPSET if opset is None else opset,
            dynamic_batch=not static,
            dynamic_size=dynamic_size,
            fp16=fp16,
            metadata=metadata,
            **names,
        )
        sizes = (example[0].shape[0],) if static and hasattr(example[0], "shape") else (1, 3)
        found = verify_onnx(module, info.path, example, batch_sizes=sizes, provider=provider, **names)
        if found.passed:
            publish(folder, output)
    info = dataclasses.replace(info, path=output, data=info.data and output.with_name(info.data.name))
    if json:
        written = info.to_json() if found.passed else {**info.to_json(), "path": None, "sha256": None, "data": None}
        print_json({**written, "verification": found.to_json()})
    else:
        _print_export(info, found)
    found.ensure()


def _print_export(info: Any, found: Any) -> None:
    from rich.markup import escape

    from pdc_fx.cli.render import err, out
    from pdc_fx.words import quantity

    out.print(
        f"{escape(str(info.path))}: {quantity(info.bytes)}B, opset {info.opset}, {sum(info.nodes.values())} nodes, "
        f"{info.exporter}, {found.precision}"
    )
    if info.data is not None:
        out.print(f"weights: {escape(str(info.data))}")
    if info.float32_nodes:
        out.print(f"kept in float32, since they may overflow: {len(info.float32_nodes)} nodes")
    older = (
        ["torch.export does not take the model; the older exporter made the file"]
        if info.exporter != "torch.export"
        else []
    )
    for note in (*older, *info.notes, *found.notes):
        err.print(f"note: {note}", soft_wrap=True, markup=False)
    verdict = "passed" if found.passed else "FAILED"
    out.print(
        f"against PyTorch: {verdict}, relative error {found.max_rel_error:.2g} (allowed {found.tolerance:g}, {found.precision})"
    )


def _open_source(
    source: str, model: str | None, weights: Path | None, classes: int | None, shapes: list[str] | None
) -> tuple[Any, tuple[Any, ...], dict[str, str]]:
    """What to export: the module, example inputs and what the file should say about itself."""
    from pdc_fx.artifacts import onnx_metadata, package_version
    from pdc_fx.files import sha256
    from pdc_fx.loading import read_fields, require_unchanged
    from pdc_fx.trace import zeros_of

    if not Path(source).is_dir():
        if model is not None:
            raise InputError("--model is for an output directory", where=source, hint="name the model once")
        loaded, example = open_model(source, weights, classes, shapes)
        return loaded.model, example, {VERSION_KEY: package_version()}
    given = {"--weights": weights, "--num-classes": classes, "--input": shapes}
    if wrong := [name for name, value in given.items() if value]:
        raise InputError(
            f"{wrong[0]} is for a MODEL, and {source} is a directory", hint="its recipe says what it needs"
        )
    directory = Path(source)
    recipe, make = open_recipe(directory, model)
    require_unchanged(directory)
    certificate = read_fields(directory, CERTIFICATE)
    metadata = onnx_metadata(recipe.plan, recipe.fields, sha256(directory / RECIPE), certificate)
    return recipe.compact(make()), zeros_of(recipe.plan.groups.inputs), metadata


ALIKE = 2e-3
"""How far an accuracy may be from the certified one, or two images: another processor rounds otherwise, and some change sides."""


@reported
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An output directory of 'compress'.")],
    model: ModelAgain = None,
    data: DataOption = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Leave the accuracy on the test images out.")] = False,
    provider: ProviderOption = "cpu",
    json: Json = False,
) -> None:
    """Check an output directory again, from disk: hashes, compact against ONNX Runtime, accuracy on the test images."""
    from pdc_fx.cli.render import err, out, percent, print_json
    from pdc_fx.export.verify import verify_onnx
    from pdc_fx.loading import OTHER_RUN, changed_files, read_fields
    from pdc_fx.trace import zeros_of

    if not directory.is_dir():
        what = "this is a file, not a directory" if directory.exists() else "there is no such directory"
        raise InputError(what, where=str(directory), hint="give the directory that 'compress' wrote")
    if data and no_data:
        raise InputError("--data and --no-data contradict each other", hint="leave one of them out")
    choose(provider)
    opened, make = open_recipe(directory, model)
    recipe, certificate = opened.fields, read_fields(directory, CERTIFICATE)
    changed = changed_files(directory)
    compact, example = opened.compact(make()), zeros_of(opened.plan.groups.inputs)
    if ONNX in changed:
        _require_own(directory)
    found = verify_onnx(compact, directory / ONNX, example, provider=provider)
    spec = data or recipe.get("data")
    certified, measured, others = certificate.get("accuracy", {}), dict[str, float](), list[str]()
    if found.passed and spec and not no_data:
        measured, images = _accuracies(spec, recipe, compact, tuple(example[0].shape[1:]), directory / ONNX, provider)
        if spec == recipe.get("data") or images.labels_digest == recipe.get("test_labels"):
            alike = max(ALIKE, 2.5 / len(images))
            others = [name for name, value in measured.items() if abs(value - certified.get(name, value)) > alike]
        else:
            said = "the test images are not those of the run, so that accuracies are not compared"
            err.print(f"note: {said}", soft_wrap=True, markup=False)
    failed = certificate.get("passed") is False
    result = {
        "directory": str(directory),
        "passed": found.passed and not changed and not failed and not others,
        "changed": changed,
        "compact_vs_onnx": found.to_json(),
        "accuracy": measured,
    }
    if json:
        print_json(result)
    else:
        out.print(
            f"compact against ONNX Runtime: relative error {found.max_rel_error:.2g} "
            f"(allowed {found.tolerance:g}, {found.precision})"
        )
        for note in found.notes:
            err.print(f"note: {note}", soft_wrap=True, markup=False)
        for name, value in measured.items():
            out.print(f"test accuracy, {name}: {percent(value)} (certified: {percent(certified.get(name))})")
    found.ensure()
    if changed:
        raise VerificationError(
            f"changed since the directory was certified: {', '.join(changed)}",
            where=str(directory),
            hint=OTHER_RUN,
        )
    if failed:
        raise VerificationError("the certificate says that its verification failed", where=str(directory / CERTIFICATE))
    if others:
        raise VerificationError(
            f"the accuracy is not the certified one: {', '.join(others)}",
            where=str(spec),
            hint="these are other images than those of the run; pass --data with where they are, or --no-data",
        )
    if not json:
        out.print("[bold green]passed[/]")


def _require_own(directory: Path) -> None:
    """Refuse a changed ONNX file of another run. One of this run is compared, so that it can be said where it differs."""
    from pdc_fx.export.session import make_session
    from pdc_fx.files import sha256
    from pdc_fx.loading import OTHER_RUN

    path = directory / ONNX
    try:
        recipe = make_session(path).get_modelmeta().custom_metadata_map.get(RECIPE_KEY)
    except ArtifactError as error:
        raise ArtifactError(error.what, where=error.where, hint=OTHER_RUN) from error
    if recipe != sha256(directory / RECIPE):
        raise ArtifactError("the ONNX file was not made from this directory's recipe", where=str(path), hint=OTHER_RUN)


def _accuracies(
    spec: str, recipe: Mapping[str, Any], compact: Any, shape: tuple[int, ...], onnx: Path, provider: str
) -> tuple[dict[str, float], ImageSet]:
    """Top-1 on the test images, in PyTorch and in ONNX Runtime, and these images."""
    import torch

    from pdc_fx.artifacts import onnx_accuracy
    from pdc_fx.cli.render import err
    from pdc_fx.distill import accuracy
    from pdc_fx.pipeline import require_classes

    try:
        images = open_images(spec, shape)
    except InputError as error:
        if spec != recipe.get("data"):
            raise
        raise InputError(
            f"the images that the recipe names are not to be had: {error.what}",
            where=error.where or spec,
            hint="pass --data with where they are now, or --no-data",
        ) from error
    if len(recipe.get("mean", ())) not in (0, images.image_shape[0]):
        channels = {1: "grey", 3: "colour"}.get(images.image_shape[0], f"{images.image_shape[0]}-channel")
        raise InputError(
            f"the network was trained on images of {len(recipe['mean'])} channels, and these are {channels} ones",
            where=spec,
            hint="pass --data with images as those of the run, or --no-data",
        )
    if recipe.get("mean"):
        images = images.with_normalization(recipe["mean"], recipe["std"])
    require_classes(compact, (torch.zeros(1, *shape),), images, "network")
    if recipe.get("classes") and list(images.classes) != list(recipe["classes"]):
        err.print(f"note: the classes of {spec} are not those of the run", soft_wrap=True, markup=False)
    found = {"compact": accuracy(compact, images.test, images), "onnx": onnx_accuracy(images, provider)(onnx)}
    return found, images.test
