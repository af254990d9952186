"""Model specs: ``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory`` or ``package.module:factory``, and weights for them.

A factory of a file is the one place where a user's code runs; weights are data and never run any: safetensors, or checkpoints that
``torch.load(..., weights_only=True)`` accepts.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

TORCHVISION_INPUTS: tuple[tuple[str, tuple[int, ...] | None], ...] = (
    (r"(quantized_)?inception_v3", (1, 3, 299, 299)),
    (r"(mc3|r3d|r2plus1d)_18", (1, 3, 16, 112, 112)),
    (r"s3d|mvit_.*|swin3d_.*", (1, 3, 16, 224, 224)),
    (r"raft_.*", None),  # two images
    (r".*", (1, 3, 224, 224)),
)
"""Pattern of a torchvision name -> shape of one example input, None where one tensor is not enough. The first match counts."""

WRAPPERS = ("module.", "_orig_mod.")
"""What ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` put before every key."""

FORMS = "torchvision:NAME, timm:NAME, path/to/file.py:factory or package.module:factory"


@dataclass(frozen=True)
class LoadedModel:
    """A model as a spec and a weights file describe it.

    Attributes:
        model: in eval mode, float32.
        spec: the text it was made from.
        num_classes: what was asked for, or None.
        normalization: mean and std per channel for inputs in [0, 1], where the weights file says so.
        input_shape: of one example input with its batch dimension, where the factory or the model says so: an attribute
            ``input_shape`` that is a sequence of positive integers.
    """

    model: nn.Module
    spec: str
    num_classes: int | None = None
    normalization: Normalization | None = None
    input_shape: tuple[int, ...] | None = None


def parse_shape(text: str) -> tuple[int, ...]:
    """Read an input shape: batch, channels, then the sizes of the image (or of the video, frames first).

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
    """The shape of one example input, batch dimension first.

    What the factory or the model says counts most, then :data:`TORCHVISION_INPUTS`, or the configuration of a timm model.

    Raises:
        InputError: nothing says what it is.

    >>> default_input(LoadedModel(nn.Identity(), "torchvision:inception_v3"))
    (1, 3, 299, 299)
    """
    if loaded.input_shape is not None:
        return loaded.input_shape
    kind, _, name = loaded.spec.partition(":")
    shape = None
    if kind == "torchvision":
        shape = next(known for pattern, known in TORCHVISION_INPUTS if re.fullmatch(pattern, name))
    elif kind == "timm":
        configuration = getattr(loaded.model, "pretrained_cfg", None) or {}
        shape = _as_shape((1, *configuration["input_size"])) if "input_size" in configuration else None
    if shape is not None:
        return shape
    raise InputError(
        "the model does not say what its input is",
        where=loaded.spec,
        hint="pass --input, e.g. 1x3x224x224, or give the factory an attribute input_shape",
    )


def build_model(spec: str, *, weights: Path | None = None, num_classes: int | None = None) -> LoadedModel:
    """Make a model and load its weights; nothing is ever downloaded.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory`` or ``package.module:factory``.
        weights: a ``.safetensors`` file, or a checkpoint that ``torch.load(..., weights_only=True)`` accepts: a state dict, alone
            or under ``state_dict`` or ``model``. Its keys are those of the model, all of them perhaps behind a prefix of
            :data:`WRAPPERS`.
        num_classes: passed to the factory as ``num_classes=``.

    Returns:
        The model in eval mode and float32, and what was learned about it on the way.

    Raises:
        InputError: the spec names nothing, its factory fails, takes no ``num_classes`` though one is given, or gives no module;
            the weights are missing, damaged, hold code, or do not fit.

    >>> build_model("torchvision:resnet18", num_classes=10).model.fc
    Linear(in_features=512, out_features=10, bias=True)
    """
    make = factory(spec, num_classes)
    model = make().float()
    normalization = _load_weights(model, weights) if weights is not None else None
    shape = _as_shape(getattr(make, "input_shape", None)) or _as_shape(getattr(model, "input_shape", None))
    return LoadedModel(model.eval(), spec, num_classes, normalization, shape)


def _as_shape(value: object) -> tuple[int, ...] | None:
    """``value`` as a shape with a batch dimension; None if it is something else that happens to have the name."""
    if not isinstance(value, (tuple, list)) or len(value) < 2:
        return None
    return tuple(value) if all(isinstance(size, int) and size > 0 for size in value) else None


def factory(spec: str, num_classes: int | None = None) -> Callable[[], nn.Module]:
    """A function without arguments that makes the model of a spec, untrained.

    The function has the attribute ``input_shape`` if the user's factory has it.

    Raises:
        InputError: the spec names nothing; or, when it is called, the user's code fails or gives no module.

    >>> factory("torchvision:squeezenet1_1", 7)().num_classes
    7
    """
    kind, separator, name = spec.rpartition(":")
    if not separator or not kind or not name:
        raise InputError(f"{spec!r} is no model", hint=f"write {FORMS}")
    if kind == "torchvision":
        return _guarded(spec, _torchvision(name, num_classes))
    if kind == "timm":
        return _guarded(spec, _timm(name, num_classes))
    target = _attribute(_from_file(Path(kind)) if kind.endswith(".py") else _from_module(kind), name, spec)
    arguments = _class_arguments(target, num_classes, spec)
    make = _guarded(spec, lambda: target(**arguments))
    if hasattr(target, "input_shape"):
        make.input_shape = target.input_shape  # type: ignore[attr-defined]
    return make


def _guarded(spec: str, create: Callable[[], object]) -> Callable[[], nn.Module]:
    """``create``, with an error that names the spec if it fails or gives something else."""

    def make() -> nn.Module:
        try:
            model = create()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the factory raised {type(error).__name__}: {error}", where=spec) from error
        if not isinstance(model, nn.Module):
            raise InputError(
                f"the factory gave a {type(model).__name__} instead of a torch.nn.Module",
                where=spec,
                hint="return the model itself, not its weights or a list",
            )
        return model

    return make


def _torchvision(name: str, num_classes: int | None) -> Callable[[], object]:
    from torchvision import models

    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}", hint=_nearest(name, models.list_models()))
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if num_classes is not None:
        options["num_classes"] = num_classes
    if name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # what they do anyway, with a warning unless it is said
    return lambda: models.get_model(name, **options)


def _timm(name: str, num_classes: int | None) -> Callable[[], object]:
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed", where=f"timm:{name}", hint="pip install timm") from error
    if name not in timm.list_models():
        raise InputError(f"timm has no model {name!r}", hint=_nearest(name, timm.list_models()))
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    return lambda: timm.create_model(name, pretrained=False, **options)


def _nearest(name: str, known: list[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    close = [by_lower[match] for match in get_close_matches(name.lower(), list(by_lower), n=3)]
    return (
        f"did you mean {', '.join(close)}?"
        if close
        else f"{len(known)} names are known, such as {', '.join(known[:3])}"
    )


def _from_file(path: Path) -> Any:
    """Run a user's file; while it runs, it can import what lies beside it."""
    path = path.expanduser()
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), hint="paths are relative to the current directory")
    module_name = f"_pdc_fx_model_{path.stem}_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look a class's module up by name
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_name, None)
        raise InputError(f"the file raised {type(error).__name__} when it was run: {error}", where=str(path)) from error
    finally:
        if beside in sys.path:
            sys.path.remove(beside)
    return module


def _from_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the module cannot be imported: {type(error).__name__}: {error}", where=name, hint=f"write {FORMS}"
        ) from error


def _attribute(module: Any, name: str, spec: str) -> Callable[..., Any]:
    target = getattr(module, name, None)
    if not callable(target):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"there is no function {name!r}", where=spec, hint=_nearest(name, known) if known else "it defines none"
        )
    if isinstance(target, nn.Module):
        raise InputError(
            f"{name!r} is a model, not a function that makes one", where=spec, hint="write a function that returns it"
        )
    return target  # type: ignore[no-any-return]


def _class_arguments(target: Callable[..., Any], num_classes: int | None, spec: str) -> dict[str, int]:
    if num_classes is None:
        return {}
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError) as error:  # written in C
        raise InputError("the factory has no signature to read", where=spec, hint="leave --num-classes out") from error
    if "num_classes" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise InputError("the factory takes no num_classes", where=spec, hint="leave --num-classes out")
    return {"num_classes": num_classes}


def _load_weights(model: nn.Module, path: Path) -> Normalization | None:
    """Load a file into ``model``, which is left as it is if the file does not fit; give what its metadata says about inputs."""
    if not path.is_file():
        raise InputError("there is no such weights file", where=str(path))
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_checkpoint(path), {})
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = _without_wrapper(state, own)
    _require_fit(own, state, path)
    _require_numbers(state, path)
    model.load_state_dict(state, strict=False)  # what may be missing was decided above
    return parse_normalization(metadata["normalisation"], path) if "normalisation" in metadata else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the weights file cannot be read: {error}",
            where=str(path),
            hint="it is cut short, damaged or no safetensors",
        ) from error


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint: plain, or under ``state_dict`` or ``model``.

    A damaged file makes torch's unpickler raise all kinds of errors (``TypeError``, ``IndexError``, ...), so all are caught.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error says the same
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"the checkpoint cannot be read as plain weights: {_reason(error)}",
            where=str(path),
            hint="it is damaged, or a pickle that holds code, which is never run; save model.state_dict(), best as safetensors",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise InputError("the checkpoint holds no state dict", where=str(path), hint="save model.state_dict()")
    return {str(key): value for key, value in data.items()}


def _reason(error: Exception) -> str:
    """What the unpickler met, or the first sentence: further on, torch advises to run the code in the file."""
    met = re.search(r"WeightsUnpickler error: (.+)", str(error))
    return met[1] if met else str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


def _without_wrapper(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without a wrapper's prefix that all of them have, unless the model has it too."""
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Keys the file must hold: not the counters of batch norms, nor a second name of a tensor that it does hold."""
    held = {own[key].data_ptr() for key in own if key in state}
    return [
        key
        for key, value in own.items()
        if key not in state and not key.endswith("num_batches_tracked") and value.data_ptr() not in held - {0}
    ]


def _require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    both = [key for key in own if key in state]
    shapes = [key for key in both if own[key].shape != state[key].shape]
    kinds = [key for key in both if own[key].is_floating_point() != state[key].is_floating_point()]
    missing, unexpected = _missing(own, state), [key for key in state if key not in own]
    lists = (
        [f"{k}: {_x(state[k])} in the file, {_x(own[k])} in the model" for k in shapes],
        [f"{k}: {state[k].dtype} in the file, {own[k].dtype} in the model" for k in kinds],
        [f"{k} ({_x(own[k])}) is missing in the file" for k in missing],
        [f"{k} ({_x(state[k])}) is not in the model" for k in unexpected],
    )
    problems = [problem for kind in lists for problem in kind[:3]]
    if not problems:
        return
    more = sum(map(len, lists)) - len(problems)
    hint = "the file belongs to another model"
    if shapes and not (kinds or missing or unexpected):
        hint = _class_hint([(state[k].shape, own[k].shape) for k in shapes]) or hint
    raise InputError(
        "the weights do not fit: " + "; ".join(problems) + (f"; and {more} more" if more else ""),
        where=str(path),
        hint=hint,
    )


def _require_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    broken = [key for key, value in state.items() if value.isnan().any()]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(
            f"weights are NaN: {', '.join(broken[:3])}{more}",
            where=str(path),
            hint="the training that wrote the file diverged; take an earlier checkpoint",
        )


def _class_hint(shapes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> str:
    """What to say if all that differs, in the file and in the model, is one and the same number of outputs."""
    if any(not there or not here or there[1:] != here[1:] for there, here in shapes):
        return ""
    counts = {(there[0], here[0]) for there, here in shapes}
    return f"pass --num-classes {counts.pop()[0]}" if len(counts) == 1 else ""


def _x(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


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
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError("as many means as stds, and those positive")
    except ValueError as error:
        raise InputError(
            f"the metadata's normalisation {text!r} is not understood ({error})",
            where=str(path),
            hint="write 'mean M ... std S ...', one number per channel",
        ) from error
    return mean, std
