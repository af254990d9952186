"""What a model is called with and what it returns, as flat lists of named tensors.

Export, verification and timing must agree on which tensor is called what: a single input is ``input`` and a single
output ``output``; several inputs take the parameter names of ``forward``; the members of a tuple are numbered, those
of a dict or named tuple take their keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import GetAttrKey, SequenceKey, tree_flatten_with_path, tree_leaves, tree_map_only

from pdc_fx.errors import InputError, TraceError
from pdc_fx.trace import Inputs, as_arguments, fresh


def call_arguments(example_inputs: Inputs) -> tuple[Any, ...]:
    """The positional arguments meant by ``example_inputs``: a tensor, or a tuple of call arguments.

    Raises:
        InputError: there is no tensor among them.

    >>> [tuple(tensor.shape) for tensor in call_arguments(torch.zeros(1, 3, 8, 8))]
    [(1, 3, 8, 8)]
    """
    args = as_arguments(example_inputs)
    if not tensors_by_path("input", args):
        raise InputError("the example inputs hold no tensor", hint="pass a tensor or a tuple of call arguments")
    return args


def tensors_by_path(name: str, value: Any) -> dict[str, Tensor]:
    """All tensors in a nest of tuples, lists and dicts, in order, each named by ``name`` and the way to it.

    >>> list(tensors_by_path("output", {"logits": torch.zeros(1), "maps": [torch.zeros(2), torch.zeros(3)]}))
    ['output_logits', 'output_maps_0', 'output_maps_1']
    """
    leaves, _ = tree_flatten_with_path(value)
    return {"_".join([name, *(_step(key) for key in path)]): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _step(key: Any) -> str:
    """One step into a nest: an index, the field of a named tuple, or the key of a dict."""
    if isinstance(key, SequenceKey):
        return str(key.idx)
    return key.name if isinstance(key, GetAttrKey) else str(key.key)


def other_values(value: Any) -> list[str]:
    """Types of what is neither a tensor nor None in a nest of tuples, lists and dicts.

    >>> other_values((torch.zeros(1), None, [3]))
    ['int']
    """
    return [type(leaf).__name__ for leaf in tree_leaves(value) if not (leaf is None or isinstance(leaf, Tensor))]


def input_tensors(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """The input tensors of one call by their ONNX names: ``input`` if there is one, else the names in ``forward``."""
    leaves = tensors_by_path("input", args)
    if len(leaves) == 1:
        return {"input": next(iter(leaves.values()))}
    named: dict[str, Tensor] = {}
    for index, arg in enumerate(args):
        named |= tensors_by_path(_parameter_name(model, index), arg)
    return named


def _parameter_name(model: nn.Module, index: int) -> str:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    return names[index] if index < len(names) else f"input_{index}"


def output_tensors(result: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output tensors of one call by their ONNX names.

    >>> list(output_tensors({"logits": torch.zeros(1), "maps": torch.zeros(1)}, {}))
    ['logits', 'maps']
    >>> list(output_tensors((torch.zeros(1), torch.zeros(1)), {}))
    ['output_0', 'output_1']
    """
    leaves = tensors_by_path("output", result)
    if not isinstance(result, Mapping) and not hasattr(result, "_fields"):
        return leaves if len(leaves) != 1 else {"output": next(iter(leaves.values()))}
    short = {name.removeprefix("output_"): leaf for name, leaf in leaves.items()}
    return leaves if short.keys() & inputs.keys() else short  # a value's name is unique in an ONNX graph


def renamed(tensors: Mapping[str, Tensor], names: Sequence[str] | None, kind: str) -> dict[str, Tensor]:
    """``tensors`` under other names, in order; as they are if there are none.

    Raises:
        InputError: there are more names than tensors, or fewer.

    >>> list(renamed({"input": torch.zeros(1)}, ["image"], "input"))
    ['image']
    """
    if not names:
        return dict(tensors)
    if len(names) != len(tensors):
        what = f"{len(names)} {kind} name(s) were given and the model has {len(tensors)}"
        raise InputError(what, where=", ".join(tensors), hint="give one for each, in this order")
    return dict(zip(names, tensors.values(), strict=True))


def has_listed_images(args: tuple[Any, ...]) -> bool:
    """Whether the images (``C x H x W``) stand in a list of their own, as torchvision's detection models take them.

    >>> has_listed_images(([torch.zeros(3, 8, 8)],)), has_listed_images((torch.zeros(1, 3, 8, 8),))
    (True, False)
    """
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg]
    return any(all(isinstance(item, Tensor) and item.dim() == 3 for item in images) for images in lists)


def batch_size(args: tuple[Any, ...], inputs: Mapping[str, Tensor]) -> int | None:
    """The size of the first dimension of the first input that has one; None if all are scalars, or images in a list."""
    if has_listed_images(args):
        return None
    return next((tensor.shape[0] for tensor in inputs.values() if tensor.dim()), None)


def is_batched(tensor: Tensor, batch: int | None) -> bool:
    """Whether the first dimension of ``tensor`` is taken to be the batch: it has the size of the batch."""
    return tensor.dim() > 0 and tensor.shape[0] == batch


def resized(args: tuple[Any, ...], batch: int, example_batch: int | None) -> tuple[Any, ...]:
    """``args`` with ``batch`` samples, by repeating those there are; tensors without a batch dimension stay."""

    def resize(tensor: Tensor) -> Tensor:
        if not is_batched(tensor, example_batch):
            return tensor
        return tensor[torch.arange(batch, device=tensor.device) % tensor.shape[0]]

    return tuple(tree_map_only(Tensor, resize, args))


def on_device_of(model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` moved to where the model's first parameter is."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return args
    return tuple(tree_map_only(Tensor, lambda tensor: tensor.to(parameter.device), args))


def run_model(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """One forward call on copies of the arguments, in full float32 precision (no TF32).

    Raises:
        TraceError: the model does not run on these arguments.
    """
    return run_on(model, fresh(args))


def run_on(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """As :func:`run_model`, on the arguments themselves, which the model may change."""
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return model(*args)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors_by_path("input", args).values())
        raise TraceError(
            f"the model does not run on the example inputs: {error}", where=f"{type(model).__name__}({shapes})"
        ) from error
