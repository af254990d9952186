"""Model specs: ``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory`` or ``package.module:factory``, and weights for them.

A factory of a file is the one place where a user's code runs; weights are data and never run any: safetensors, or checkpoints that
``torch.load(..., weights_only=True)`` accepts.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

# torchvision's classifiers take 224 x 224; the exceptions:
TORCHVISION_INPUTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"inception_v3", (1, 3, 299, 299)),
    (r"(mc3|r3d|r2plus1d)_18", (1, 3, 16, 112, 112)),
    (r"s3d|mvit_.*|swin3d_.*", (1, 3, 16, 224, 224)),
    (r".*", (1, 3, 224, 224)),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model as a spec and a weights file describe it.

    Attributes:
        model: in eval mode.
        spec: the text it was made from.
        num_classes: what was asked for, or None.
        normalization: mean and std per channel for inputs in [0, 1], where the weights file says so.
        input_shape: of one example input, where the factory or the model says so (attribute ``input_shape``).
    """

    model: nn.Module
    spec: str
    num_classes: int | None = None
    normalization: Normalization | None = None
    input_shape: tuple[int, ...] | None = None


def parse_shape(text: str) -> tuple[int, ...]:
    """Read an input shape.

    Raises:
        InputError: it is not of the form ``1x3x224x224``.

    >>> parse_shape("1x3x224x224")
    (1, 3, 224, 224)
    """
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})+", text):
        raise InputError(
            f"{text!r} is no input shape", hint="write it as 1x3x224x224: batch x channels x height x width"
        )
    return tuple(int(part) for part in text.split("x"))


def default_input(loaded: LoadedModel) -> tuple[int, ...]:
    """The shape of one example input.

    Raises:
        InputError: nothing says what it is.

    >>> default_input(LoadedModel(nn.Identity(), "torchvision:inception_v3"))
    (1, 3, 299, 299)
    """
    if loaded.input_shape is not None:
        return loaded.input_shape
    kind, _, name = loaded.spec.partition(":")
    if kind == "torchvision":
        return next(shape for pattern, shape in TORCHVISION_INPUTS if re.fullmatch(pattern, name))
    raise InputError(
        "the model does not say what its input is",
        where=loaded.spec,
        hint="pass --input, e.g. 1x3x224x224, or give the factory an attribute input_shape",
    )


def build_model(spec: str, *, weights: Path | None = None, num_classes: int | None = None) -> LoadedModel:
    """Make a model and load its weights; nothing is ever downloaded.

    Args:
        spec: as above.
        weights: a file whose keys are those of the model's state dict.
        num_classes: passed to the factory.

    Raises:
        InputError: the spec names nothing, its factory fails or gives no module, or the weights do not fit.

    >>> build_model("torchvision:resnet18", num_classes=10).model.fc
    Linear(in_features=512, out_features=10, bias=True)
    """
    make = factory(spec, num_classes)
    try:
        model = make()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the factory raised {type(error).__name__}: {error}", where=spec) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"the factory gave a {type(model).__name__} instead of a torch.nn.Module", where=spec)
    normalization = _load_weights(model, weights) if weights is not None else None
    shape = getattr(model, "input_shape", getattr(make, "input_shape", None))
    return LoadedModel(model.eval(), spec, num_classes, normalization, tuple(shape) if shape is not None else None)


def factory(spec: str, num_classes: int | None = None) -> Callable[[], nn.Module]:
    """A function without arguments that makes the model of a spec.

    Raises:
        InputError: the spec names nothing.
    """
    kind, separator, name = spec.rpartition(":")
    if not separator or not kind or not name:
        raise InputError(f"{spec!r} is no model", hint="write torchvision:NAME, timm:NAME or path/to/file.py:factory")
    if kind == "torchvision":
        return _torchvision(name, num_classes)
    if kind == "timm":
        return _timm(name, num_classes)
    target = _attribute(_from_file(Path(kind)) if kind.endswith(".py") else _from_module(kind), name, spec)
    arguments = _class_arguments(target, num_classes, spec)

    def make() -> nn.Module:
        return cast(nn.Module, target(**arguments))

    if hasattr(target, "input_shape"):
        make.input_shape = target.input_shape  # type: ignore[attr-defined]
    return make


def _torchvision(name: str, num_classes: int | None) -> Callable[[], nn.Module]:
    from torchvision import models

    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}", hint=_nearest(name, models.list_models()))
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if num_classes is not None:
        options["num_classes"] = num_classes
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return lambda: models.get_model(name, **options)


def _timm(name: str, num_classes: int | None) -> Callable[[], nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed", where=f"timm:{name}", hint="pip install timm") from error
    if name not in timm.list_models():
        raise InputError(f"timm has no model {name!r}", hint=_nearest(name, timm.list_models()))
    options = {} if num_classes is None else {"num_classes": num_classes}
    return lambda: timm.create_model(name, pretrained=False, **options)


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return (
        f"did you mean {', '.join(close)}?"
        if close
        else f"{len(known)} names are known, such as {', '.join(known[:3])}"
    )


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), hint="paths are relative to the current directory")
    module_name = f"_pdc_fx_model_{path.stem}_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise InputError(f"the file raised {type(error).__name__} when it was run: {error}", where=str(path)) from error
    return module


def _from_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"no module can be imported: {error}",
            where=name,
            hint="write torchvision:NAME, timm:NAME or path/to/file.py:factory",
        ) from error


def _attribute(module: Any, name: str, spec: str) -> Callable[..., Any]:
    target = getattr(module, name, None)
    if not callable(target):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"there is no function {name!r}", where=spec, hint=_nearest(name, known) if known else "it defines none"
        )
    return target  # type: ignore[no-any-return]


def _class_arguments(target: Callable[..., Any], num_classes: int | None, spec: str) -> dict[str, int]:
    if num_classes is None:
        return {}
    parameters = inspect.signature(target).parameters
    if "num_classes" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise InputError("the factory takes no num_classes", where=spec, hint="leave --num-classes out")
    return {"num_classes": num_classes}


def _load_weights(model: nn.Module, path: Path) -> Normalization | None:
    if not path.is_file():
        raise InputError("there is no such weights file", where=str(path))
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_checkpoint(path), {})
    _require_fit(model, state, path)
    model.load_state_dict(state)
    return parse_normalization(metadata["normalisation"], path) if "normalisation" in metadata else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights file cannot be read: {error}", where=str(path)) from error


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint cannot be read as plain weights: {str(error).splitlines()[0]}",
            where=str(path),
            hint="pickles that hold code are never run; save model.state_dict(), best as safetensors",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise InputError("the checkpoint holds no state dict", where=str(path), hint="save model.state_dict()")
    prefixed = all(key.startswith("module.") for key in data)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in data.items()}


def _require_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    shapes = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    optional = {k for k in own if k.endswith("num_batches_tracked")}
    missing, unexpected = [k for k in own if k not in state and k not in optional], [k for k in state if k not in own]
    if not shapes and not missing and not unexpected:
        for key in optional - state.keys():
            state[key] = own[key]  # type: ignore[index]
        return
    problems = [
        *shapes[:3],
        *(f"{k} is missing in the file" for k in missing[:3]),
        *(f"{k} is not in the model" for k in unexpected[:3]),
    ]
    more = len(shapes) + len(missing) + len(unexpected) - len(problems)
    hint = "the file belongs to another model"
    if shapes and not missing and not unexpected:
        heads = {
            state[k].shape[0]
            for k in own
            if k in state and own[k].shape != state[k].shape and own[k].shape[1:] == state[k].shape[1:]
        }
        hint = f"pass --num-classes {heads.pop()}" if len(heads) == 1 and len(shapes) <= 2 else hint
    raise InputError(
        "the weights do not fit: " + "; ".join(problems) + (f"; and {more} more" if more > 0 else ""),
        where=str(path),
        hint=hint,
    )


def parse_normalization(text: str, path: Path) -> Normalization:
    """Read ``mean 0.5 0.5 0.5 std 0.2 0.2 0.2``, as the metadata of a weights file says it.

    Raises:
        InputError: it has another form.

    >>> parse_normalization("mean 0.5 std 0.25", Path("weights.safetensors"))
    ((0.5,), (0.25,))
    """
    match = re.fullmatch(r"mean((?:\s+[\d.eE+-]+)+)\s+std((?:\s+[\d.eE+-]+)+)", text.strip())
    try:
        if match is None:
            raise ValueError("another form")
        mean, std = (tuple(float(v) for v in part.split()) for part in match.groups())
        if len(mean) != len(std):
            raise ValueError("as many means as stds")
    except ValueError as error:
        raise InputError(
            f"the metadata's normalisation {text!r} is not understood ({error})",
            where=str(path),
            hint="write 'mean M ... std S ...', one number per channel",
        ) from error
    return mean, std
