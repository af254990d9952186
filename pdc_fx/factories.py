"""What a spec names: ``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory`` or ``package.module:factory``.

A factory of a file is the one place where a user's code runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from pdc_fx.errors import InputError

FORMS = "torchvision:NAME, timm:NAME, path/to/file.py:factory or package.module:factory"


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
        raise InputError(f"{spec!r} is no model", hint=_nearest_form(spec))
    if kind == "torchvision":
        return _guarded(spec, _torchvision(name, num_classes))
    if kind == "timm":
        return _guarded(spec, _timm(name, num_classes))
    file = Path(kind).expanduser() if kind.endswith(".py") else None
    target = _attribute(_from_module(kind) if file is None else _from_file(file), name, spec)
    arguments = _class_arguments(target, num_classes, spec)
    make = _guarded(spec, lambda: target(**arguments), file)
    if hasattr(target, "input_shape"):
        make.input_shape = target.input_shape  # type: ignore[attr-defined]
    return make


def collection(family: str) -> list[str]:
    """Names of all models of a family: ``torchvision`` (without the quantized ones, whose weights are no tensors) or ``timm``.

    Raises:
        InputError: there is no such family, or it is not installed.

    >>> len(collection("torchvision")) > 100
    True
    """
    if family == "torchvision":
        from torchvision.models import list_models

        return [name for name in list_models() if not name.startswith("quantized_")]
    if family == "timm":
        try:
            import timm
        except ImportError as error:
            raise InputError("timm is not installed", hint="pip install timm") from error
        return list(timm.list_models())
    raise InputError(f"{family!r} is no collection of models", hint="write torchvision or timm")


def _guarded(spec: str, create: Callable[[], object], file: Path | None = None) -> Callable[[], nn.Module]:
    """``create``, with an error that names the spec, and the line of ``file``, if it fails or gives something else."""

    def make() -> nn.Module:
        try:
            with nullcontext() if file is None else _importing_beside(file):
                model = create()
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            line = None if file is None else _line(error, file)
            where = spec if line is None else f"{spec}, line {line}"
            hint = "it is called without arguments, or with num_classes: call it so in Python to see where it fails"
            if isinstance(error, SystemExit):
                hint = "it must neither end the program nor read its command line"
            raise InputError(f"the factory raised {type(error).__name__}: {error}", where=where, hint=hint) from error
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


def _nearest_form(spec: str) -> str:
    """What somebody may have meant who left out one side of a spec."""
    from torchvision.models import list_models

    if spec.endswith(".py"):
        return f"write {spec}:NAME, where NAME is a function in it that returns the model"
    if spec.endswith(".onnx"):
        return (
            "to compare ONNX files take 'bench'; else give the model they were made from, or a directory of 'compress'"
        )
    return f"did you mean torchvision:{spec}?" if spec in list_models() else f"write {FORMS}"


def _nearest(name: str, known: list[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    close = [by_lower[match] for match in get_close_matches(name.lower(), list(by_lower), n=3)]
    return (
        f"did you mean {', '.join(close)}?"
        if close
        else f"{len(known)} names are known, such as {', '.join(known[:3])}"
    )


@contextmanager
def _importing_beside(file: Path) -> Iterator[None]:
    """While entered, what lies beside a user's file can be imported, as when Python runs the file."""
    beside = str(file.resolve().parent)
    sys.path.insert(0, beside)
    try:
        yield
    finally:
        if beside in sys.path:
            sys.path.remove(beside)


def _line(error: BaseException, file: Path) -> int | None:
    """The line of ``file`` that raised ``error``, or from which what did was called."""
    names = {str(file), os.path.abspath(file)}
    if isinstance(error, SyntaxError) and error.filename in names:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    return lines[-1] if lines else None


def _from_file(path: Path) -> Any:
    """Run a user's file."""
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), hint="paths are relative to the current directory")
    module_name = f"_pdc_fx_model_{path.stem}_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look a class's module up by name
    try:
        with _importing_beside(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_name, None)
        line = _line(error, path)
        where = str(path) if line is None else f"{path}:{line}"
        hint = _as_module(path) if isinstance(error, ImportError) else ""
        raise InputError(
            f"the file raised {type(error).__name__} when it was run: {error}", where=where, hint=hint
        ) from error
    return module


def _as_module(path: Path) -> str:
    """How to name a file of a package, whose relative imports need that; nothing for any other file."""
    parts, folder = [path.stem], path.resolve().parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return f"it is part of a package: write {'.'.join(parts)}:FACTORY, with PYTHONPATH={folder}" if parts[1:] else ""


def lies_in(spec: str, folder: Path) -> bool:
    """Whether a spec names code in ``folder``, by whatever way: ``..``, links, an absolute path, a module that is found there.

    >>> lies_in("out/../out/net.py:net", Path("out")), lies_in("net.py:net", Path("out")), lies_in("torchvision:vgg11", Path("."))
    (True, False, False)
    """
    kind = spec.rpartition(":")[0]
    places = [Path(kind).expanduser()] if kind.endswith(".py") else _places_of_module(kind)
    return any(place.resolve().is_relative_to(folder.resolve()) for place in places)


def _places_of_module(name: str) -> list[Path]:
    """Where a module would come from. Nothing is imported: of ``a.b.c`` only ``a`` is looked up, and the rest is taken for folders."""
    first, *rest = name.split(".")
    try:
        found = importlib.util.find_spec(first)
    except (ImportError, ValueError):  # no module can be called so, or one that was not imported from anywhere
        return []
    if found is None:
        return []
    folders = [Path(folder, *rest) for folder in found.submodule_search_locations or ()]
    return folders or [Path(found.origin or first)]


def _from_module(name: str) -> Any:
    if name.partition(".")[0] in sys.stdlib_module_names:  # os:abort, antigravity: not even imported
        raise InputError("Python's own library holds no models", where=name, hint=f"write {FORMS}")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        here = Path(*name.split("."))
        found = here.is_dir() or here.with_suffix(".py").is_file()
        hint = f"write {FORMS}"
        if isinstance(error, ModuleNotFoundError) and found:
            hint = "it lies here, where Python does not look: set PYTHONPATH=. before the command"
        raise InputError(
            f"the module cannot be imported: {type(error).__name__}: {error}", where=name, hint=hint
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
