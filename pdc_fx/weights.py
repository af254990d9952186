"""Weights files: data that never runs any code: safetensors, or checkpoints that ``torch.load(..., weights_only=True)`` accepts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError

_COUNTER = "num_batches_tracked"
"""What a batch norm counts and does not use in eval mode."""
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def load_weights(model: nn.Module, path: Path) -> Normalization | None:
    """Load a file into ``model``, which is left as it is if the file does not fit; give what its metadata says about inputs."""
    if not path.is_file():
        what = "the weights are a directory, not a file" if path.is_dir() else "there is no such weights file"
        raise InputError(what, where=str(path))
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_checkpoint(path), {})
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = _without_wrapper(state, own)
    _require_fit(own, state, path)
    _require_numbers(state, path)
    model.load_state_dict(state, strict=False)  # what may be missing was decided above
    text = metadata.get("normalisation", metadata.get("normalization"))
    return None if text is None else parse_normalization(text, path)


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
    """The state dict of a checkpoint: plain, or under ``state_dict``, ``model_state_dict`` or ``model``.

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
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        keys = f", but {', '.join(map(repr, list(data)[:5]))}" if isinstance(data, dict) and data else ""
        raise InputError(f"the checkpoint holds no state dict{keys}", where=str(path), hint="save model.state_dict()")
    return {str(key): value for key, value in data.items()}


def _reason(error: Exception) -> str:
    """What the unpickler met, or the first sentence: further on, torch advises to run the code in the file."""
    met = re.search(r"WeightsUnpickler error: (.+)", str(error))
    if str(error).isdecimal():  # torch's unpickler names a byte that is no instruction so
        return "this is no file of torch.save"
    return (met[1] if met else str(error).partition("\n")[0]).partition(". ")[0] or type(error).__name__


def _without_wrapper(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what stands before all: ``module.`` (data parallelism), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning)."""
    bare = state
    while bare and not any(key in own for key in bare):
        if len({key.partition(".")[0] for key in bare}) > 1 or any("." not in key for key in bare):
            return state
        bare = {key.partition(".")[2]: value for key, value in bare.items()}
    return bare


def _prefix_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Under which prefix a file that holds more holds such a network (``student.``); empty if it does not."""
    first = next(iter(own), "")
    prefixes = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    return next((p for p in prefixes if not _missing(own, {key.removeprefix(p): state[key] for key in state})), "")


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Keys the file must hold: not the counters of batch norms, nor a second name of a tensor that it does hold."""
    held = {own[key].data_ptr() for key in own if key in state}
    return [
        key
        for key, value in own.items()
        if key not in state and not key.endswith(_COUNTER) and value.data_ptr() not in held - {0}
    ]


def _require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    both = [key for key in own if key in state]
    shapes = [key for key in both if own[key].shape != state[key].shape]
    kinds = [
        key
        for key in both
        if own[key].is_floating_point() != state[key].is_floating_point() and not key.endswith(_COUNTER)
    ]
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
    few = len(missing) + len(unexpected) <= len(both) // 2 and not shapes
    hint = (
        "the file belongs to another model"
        if not few
        else "rename or add these, or load it into your model and save that"
    )
    if shapes and not (kinds or missing or unexpected):
        hint = _class_hint([(state[k].shape, own[k].shape) for k in shapes]) or hint
    if missing and (prefix := _prefix_of(own, state)):
        hint = f"such a network is in the file under {prefix!r}: write out that part alone"
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
    """Read ``mean 0.5 0.5 0.5 std 0.2 0.2 0.2``, with blanks or commas in between, as the metadata of a weights file says it.

    Raises:
        InputError: it has another form.

    >>> parse_normalization("mean 0.5, 0.4 std 0.25 0.2", Path("weights.safetensors"))
    ((0.5, 0.4), (0.25, 0.2))
    """
    match = re.fullmatch(r"mean((?:\s+[\d.eE+-]+)+)\s+std((?:\s+[\d.eE+-]+)+)", text.replace(",", " ").strip())
    try:
        if match is None:
            raise ValueError("another form")
        mean, std = (tuple(float(v) for v in part.split()) for part in match.groups())
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError("as many means as stds, and those positive")
        if max(*mean, *std) > 1:
            raise ValueError("they are of pixels between 0 and 1: divide by 255")
    except ValueError as error:
        raise InputError(
            f"the metadata's normalisation {text!r} is not understood ({error})",
            where=str(path),
            hint="write 'mean M ... std S ...', one number per channel",
        ) from error
    return mean, std
