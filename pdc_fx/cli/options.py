"""What several commands share: their options, errors as one message, and opening a MODEL."""

from __future__ import annotations

import errno
import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from pdc_fx.directory import RECIPE
from pdc_fx.errors import ArtifactError, InputError, PdcError

if TYPE_CHECKING:
    from torch import nn

    from pdc_fx.loading import Recipe

_MODEL = typer.Argument(
    metavar="MODEL", help="torchvision:NAME, timm:NAME or path/to/file.py:factory (the factory's code is run)."
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="A safetensors file, or a checkpoint that loads with weights_only=True."),
]
Classes = Annotated[
    int | None, typer.Option("--num-classes", min=1, help="Number of classes the factory is asked for.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="1x3x224x224",
        help="Shape of the input (batch x channels x height x width). Repeat it for a model of several inputs.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
Frozen = Annotated[
    list[str] | None,
    typer.Option("--freeze", help="Name or pattern of modules whose channels stay, e.g. 'layer4.*'. May be repeated."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of everything random.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="digits, parquet:DIR, folder:DIR, cifar10:DIR, cifar100:DIR or fashionmnist:DIR."),
]
Download = Annotated[bool, typer.Option("--download", help="Allow torchvision to fetch the data set into DIR.")]
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
ProviderOption = Annotated[
    Provider,
    typer.Option(
        "--provider",
        metavar="PROVIDER",
        help="Where ONNX Runtime runs: cpu, cuda, tensorrt, or auto, the best of them that works here.",
    ),
]
ModelAgain = Annotated[
    str | None, typer.Option("--model", help="The original MODEL, where the recipe's path no longer holds.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output's place.")]


def _round_to(value: Any) -> Any:
    """``auto``, or a whole number."""
    text = str(value)
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter("give 'auto' or a whole number from 1 on")
    return text if text == "auto" else int(text)


RoundTo = Annotated[
    Any,
    typer.Option(
        "--round-to",
        metavar="N|auto",
        parser=_round_to,
        help="Keep widths at multiples of this; auto: what the provider computes in one block, less for narrow layers.",
    ),
]

Function = TypeVar("Function", bound=Callable[..., None])


def reported(command: Function) -> Function:
    """Turn a :class:`PdcError` into one message on standard error and its exit code.

    What the system refuses (a name that is too long, a file that may not be read) is bad input like any other.
    """

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _quiet_stdout(kwargs):
                command(*args, **kwargs)
        except PdcError as error:
            from pdc_fx.cli.render import print_error

            print_error(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            from pdc_fx.cli.render import print_error, reader_has_gone

            if error.errno == errno.EPIPE:
                reader_has_gone()
            name = str(error.filename or "")
            shown = name if len(name) <= 200 else f"{name[:200]}..."
            print_error(f"the system refused: {error.strerror or error}" + (f" [{shown}]" if shown else ""))
            raise typer.Exit(InputError.exit_code) from error
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            raise typer.Exit(130) from None

    return run  # type: ignore[return-value]


def _quiet_stdout(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Where a program is to read what a command prints, nothing but that is printed there."""
    if not any(options.get(name) for name in ("json", "dot", "graphml")):
        return nullcontext()
    from pdc_fx.cli.render import alone_on_stdout

    return alone_on_stdout()


def command_line() -> str:
    """The command that runs, as a shell takes it; bytes of a file's name that are no text are written as escapes."""
    return plain(shlex.join(["pdc-fx", *sys.argv[1:]]))


def plain(text: str) -> str:
    """``text`` as it can be written in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def show_progress() -> None:
    """Show on standard error what the library says while it measures."""
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("pdc_fx")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def require_new(path: Path, overwrite: bool) -> None:
    """Raise :class:`InputError` where a result would take the place of a folder, or of a file without ``--overwrite``."""
    if path.is_dir():
        raise InputError("this is a directory", where=str(path), hint="give the name of a file")
    if path.exists() and not overwrite:
        raise InputError("the file exists", where=str(path), hint="choose another, or pass --overwrite")


def choose(provider: str) -> str:
    """The provider to use, which works here; where ``auto`` left the choice to us, a line on standard error says what was taken and why."""
    from pdc_fx.cli.render import err
    from pdc_fx.export.session import AUTO, choose_provider

    chosen = choose_provider(provider)
    if provider == AUTO:
        err.print(f"provider: {chosen.name} ({chosen.why})", soft_wrap=True, markup=False)
    return chosen.name


def open_model(spec: str, weights: Path | None, classes: int | None, shapes: list[str] | None) -> tuple[Any, Any]:
    """The model, and call arguments of zeros: several tensors or a list of images where it wants them."""
    from pdc_fx.models import build_model, example_inputs, parse_shape

    sizes = [parse_shape(shape) for shape in shapes or ()]
    loaded = build_model(spec, weights=weights, num_classes=classes)
    return loaded, example_inputs(loaded, sizes)


def open_recipe(directory: Path, model: str | None) -> tuple[Recipe, Callable[[], nn.Module]]:
    """The recipe of an output directory, and what makes the original model: ``model`` where one is named.

    Raises:
        ArtifactError: the recipe is damaged, or its model is code that came with the directory.
    """
    from pdc_fx.factories import factory, lies_in
    from pdc_fx.loading import Recipe, read_fields

    fields = read_fields(directory, RECIPE)
    spec = model or fields.get("model")
    if not spec:
        raise InputError(
            "the recipe does not say which model it belongs to", where=str(directory / RECIPE), hint="pass --model"
        )
    if model is None and lies_in(spec, directory):
        raise ArtifactError(
            "the recipe's model is code that came with the directory, which is not run",
            where=f"{directory / RECIPE}: {spec}",
            hint="pass --model if you trust it; 'compress' never puts code there",
        )
    recipe = Recipe.of(fields, directory)
    try:
        make = factory(spec, fields.get("num_classes"))
    except InputError as error:
        if model is not None:
            raise
        raise InputError(
            f"the model that the recipe names is not to be had: {error.what}",
            where=error.where or spec,
            hint="pass --model with where it is now, seen from here: a path in a recipe counts from where 'compress' ran",
        ) from error
    return recipe, lambda: make().float()  # as the network was compressed


def open_image_model(
    spec: str,
    weights: Path | None,
    classes: int | None,
    shapes: list[str] | None,
    otherwise: Callable[[], tuple[int, ...]] | None = None,
) -> tuple[Any, Any]:
    """The model, and one tensor of zeros, for what works on models of one tensor only.

    ``otherwise`` gives the shape of an image, without a batch dimension, for a model of which nobody says it.
    """
    from pdc_fx.models import build_model, default_input, parse_shape, says_its_input, zeros

    if len(shapes or ()) > 1:
        raise InputError("this works for models of one tensor only", hint="pass --input once")
    size = parse_shape(shapes[0]) if shapes else None
    loaded = build_model(spec, weights=weights, num_classes=classes)
    if size is None and otherwise is not None and not says_its_input(loaded):
        size = (1, *otherwise())
    return loaded, zeros(size or default_input(loaded))


def open_images(spec: str, shape: tuple[int, ...], *, download: bool = False) -> Any:
    """Data, its images brought to the shape of the model's input where a set may hold several; says where colours are lost or made up."""
    from pdc_fx.cli.render import err
    from pdc_fx.data import open_data

    several = spec.startswith(("folder:", "parquet:"))
    images = open_data(spec, input_shape=shape if several else None, download=download)  # type: ignore[arg-type]
    stored, channels = images.train.stored_shape[0], images.image_shape[0]
    if stored != channels:
        kinds = {1: "grey", 3: "colour"}
        err.print(f"images: {kinds[stored]} ones are made {kinds[channels]}, as the model's input is", markup=False)
    return images
