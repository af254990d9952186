"""An output directory read back: whether its files are those that were certified, and the compact network out of them.

What :mod:`pdc_fx.artifacts` writes. Nothing of it is believed: files may be damaged, of another run, or somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdc_fx.directory import CERTIFICATE, FORMAT, ONNX, RECIPE, WEIGHTS
from pdc_fx.errors import ArtifactError, TraceError, require_kind
from pdc_fx.files import parse_json, sha256
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.trace import zeros_of

OTHER_RUN = "take the files of one run, or compress again"
"""The way out where the files of a directory do not belong together."""


@dataclass(frozen=True)
class Recipe:
    """What an output directory says of its network.

    Attributes:
        directory: where it was read.
        fields: the model spec, the data, the classes and so on, as far as they are known.
        plan: the clusters that were merged.
    """

    directory: Path
    fields: Mapping[str, Any]
    plan: ClusterPlan

    @staticmethod
    def read(directory: Path) -> Recipe:
        """That of a directory.

        Raises:
            ArtifactError: it is missing, damaged, or of a format that is not known.
        """
        return Recipe.of(read_fields(directory, RECIPE), directory)

    @staticmethod
    def of(fields: Mapping[str, Any], directory: Path) -> Recipe:
        """The same of what was read there."""
        if fields.get("format") != FORMAT:
            raise ArtifactError(
                f"recipe format {fields.get('format')!r} is not known",
                where=str(directory / RECIPE),
                hint=f"this version reads format {FORMAT}",
            )
        try:
            plan = ClusterPlan.from_dict(fields["plan"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise ArtifactError(
                f"the recipe's plan is malformed: {type(error).__name__} {error}", where=str(directory / RECIPE)
            ) from error
        return Recipe(directory, fields, plan)

    def compact(self, model: nn.Module) -> nn.Module:
        """``model``, which stays as it is, shrunk by the plan, with the weights of the directory, in eval mode.

        Raises:
            ArtifactError: the weights are missing or damaged, or do not fit, or the model does not take the recipe's input.
            RewriteError: the plan was made for another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.directory / WEIGHTS
        try:
            compact = merge_channels(model, self.plan, zeros_of(self.plan.groups.inputs))
        except TraceError as error:
            raise ArtifactError(
                f"the model does not take the input of the recipe: {error.what}",
                where=str(self.directory / RECIPE),
                hint="pass the model that was compressed (--model MODEL)",
            ) from error
        try:
            _unfold(compact)
            weights = load_file(str(path))
            missing, unexpected = compact.load_state_dict(weights, strict=False)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"the weights cannot be read: {error}", where=str(path), hint=OTHER_RUN) from error
        except RuntimeError as error:  # of load_state_dict; below its first line each tensor that does not fit has one
            lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
            problem, others = lines[min(1, len(lines) - 1)], max(0, len(lines) - 2)
            raise ArtifactError(
                f"the weights do not fit the recipe: {problem}{f', and {others} more' if others else ''}",
                where=str(path),
                hint=OTHER_RUN,
            ) from error
        own = compact.state_dict()
        there = {_place(tensor) for name, tensor in own.items() if name in weights}
        missing = [
            name for name in missing if _place(own[name]) not in there
        ]  # of two names of one tensor a file has one
        if missing or unexpected:
            raise ArtifactError(
                f"the weights do not fit the recipe: missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}",
                where=str(path),
                hint=OTHER_RUN,
            )
        return compact.eval()


def load(
    model_or_factory: nn.Module | Callable[[], nn.Module],
    directory: str | os.PathLike[str],
    *,
    check_files: bool = True,
) -> nn.Module:
    """Rebuild the compact model: the original architecture, shrunk by the recipe, with the saved weights.

    Args:
        model_or_factory: the original model (its weights do not matter; it is not changed), or a function that makes it.
        directory: as written by :func:`save` or ``pdc-fx compress``.
        check_files: refuse files that changed since they were certified.

    Returns:
        The compact model in eval mode, on the CPU.

    Raises:
        ArtifactError: a file is missing, damaged or changed, or the recipe does not fit the model.

    :func:`pdc_fx.save` shows it at work.

    >>> load(nn.Identity(), "no-such-directory")
    Traceback (most recent call last):
    pdc_fx.errors.ArtifactError: this is no output directory of pdc-fx: a file is missing
    """
    folder = Path(directory)
    recipe = Recipe.read(folder)
    if check_files:
        require_unchanged(folder)
    if isinstance(model_or_factory, nn.Module):
        return recipe.compact(model_or_factory)
    hint = "pass the original model, or the function that makes it: pdc_fx.models.build_model(spec).model for a name"
    require_kind(model_or_factory, Callable, "a model or a function that makes one", hint)  # type: ignore[arg-type]
    return recipe.compact(model_or_factory())


def _unfold(model: nn.Module) -> None:
    """Give buffers that repeat a number (``expand``) memory of their own, or they could not be written to."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and 0 in buffer.stride():
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)


def _place(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def changed_files(directory: Path) -> list[str]:
    """Names of files whose SHA-256 is not that of the certificate.

    Raises:
        ArtifactError: one is missing.
    """
    recorded = read_fields(directory, CERTIFICATE).get("files", {})
    if outside := [name for name in recorded if name != Path(name).name or name in ("", ".", "..")]:
        raise ArtifactError(
            f"the certificate names a file outside of its directory: {outside[0]!a}", where=str(directory / CERTIFICATE)
        )
    if not recorded:
        raise ArtifactError("the certificate lists no files", where=str(directory / CERTIFICATE))
    names = list(dict.fromkeys([WEIGHTS, RECIPE, ONNX, *map(str, recorded)]))  # and weights beside the ONNX file
    for name in names:
        if not (directory / name).is_file():
            raise ArtifactError("a file is missing", where=str(directory / name))
    return [name for name in names if recorded.get(name) != sha256(directory / name)]


def require_unchanged(directory: Path) -> None:
    """Raise :class:`ArtifactError` where a file is missing, or is not the one that was certified."""
    if changed := changed_files(directory):
        raise ArtifactError(
            f"changed since the directory was certified: {', '.join(changed)}",
            where=str(directory),
            hint="'pdc-fx verify' tells what differs",
        )


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON object of an output directory.

    Raises:
        ArtifactError: it is missing, or is not a JSON object.
    """
    path = directory / name
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError("this is no output directory of pdc-fx: a file is missing", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the file cannot be read: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise ArtifactError("the file does not hold a JSON object", where=str(path))
    return data


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda v: v is None or isinstance(v, str), "a text"),
    "num_classes": (lambda v: v is None or (type(v) is int and v > 0), "a whole number"),
    "data": (lambda v: isinstance(v, str), "a text"),
    "mean": (lambda v: _are(v, float, int), "a list of numbers"),
    "std": (lambda v: _are(v, float, int) and all(x > 0 for x in v), "a list of positive numbers"),
    "classes": (lambda v: _are(v, str), "a list of texts"),
    # of a certificate
    "files": (lambda v: isinstance(v, dict) and _are(list(v.values()), str), "an object of texts"),
    "accuracy": (lambda v: isinstance(v, dict) and _are(list(v.values()), float, int), "an object of numbers"),
}
"""What a recipe or a certificate may hold that is used later: a test, and its words."""


def _are(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and all(type(value) in kinds for value in values)


def read_fields(directory: Path, name: str) -> dict[str, Any]:
    """A recipe or a certificate, each known field of the kind that it should be.

    Raises:
        ArtifactError: the file is missing or damaged, or a field is of another kind.
    """
    data = read_json(directory, name)
    for field_name, (holds, kind) in _FIELDS.items():
        if field_name in data and not holds(data[field_name]):
            raise ArtifactError(f"'{field_name}' is not {kind}", where=str(directory / name))
    if len(data.get("mean", ())) != len(data.get("std", ())):
        raise ArtifactError("'mean' and 'std' differ in length", where=str(directory / name))
    return data
