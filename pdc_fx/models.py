"""A model of a spec with its weights, and the inputs it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError
from pdc_fx.factories import factory
from pdc_fx.weights import Normalization, load_weights

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CallShapes:
    """What a model is called with.

    Attributes:
        shapes: one per tensor, batch dimension first.
        listed: the tensors are images of their own, without a batch dimension, and go in as one list.
    """

    shapes: tuple[Shape, ...]
    listed: bool = False


TORCHVISION_INPUTS: tuple[tuple[str, CallShapes], ...] = (
    (r"(quantized_)?inception_v3", CallShapes(((1, 3, 299, 299),))),
    (r"(mc3|r3d|r2plus1d)_18", CallShapes(((1, 3, 16, 112, 112),))),
    (r"s3d|mvit_.*|swin3d_.*", CallShapes(((1, 3, 16, 224, 224),))),
    # the smallest whose correlation pyramid of four levels, on an eighth of the image, has two pixels at the top
    (r"raft_.*", CallShapes(((1, 3, 128, 128),) * 2)),
    # resized by the model to fixed sizes, whatever comes in
    (r"ssd.*|.*rcnn_mobilenet_v3_large_320_fpn", CallShapes(((3, 320, 320),), listed=True)),
    # resized by the model until the longer side has 1333 pixels, the shorter at most 800: a narrow image costs a sixth of a square one
    (r".*rcnn_.*|retinanet_.*|fcos_.*", CallShapes(((3, 64, 640),), listed=True)),
    (r".*", CallShapes(((1, 3, 224, 224),))),
)
"""Pattern of a torchvision name -> what the model is called with. The first match counts."""


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
    input_shape: Shape | None = None


def parse_shape(text: str) -> Shape:
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


def default_input(loaded: LoadedModel) -> Shape:
    """The shape of one example input, batch dimension first, of a model that takes one tensor.

    Raises:
        InputError: nothing says what it is, or the model takes something else.

    >>> default_input(LoadedModel(nn.Identity(), "torchvision:inception_v3"))
    (1, 3, 299, 299)
    """
    known = call_shapes(loaded)
    if known.listed or len(known.shapes) > 1:
        takes = "a list of images" if known.listed else f"{len(known.shapes)} tensors"
        raise InputError(
            f"the model takes {takes}, and here one tensor is needed",
            where=loaded.spec,
            hint="pass --input, e.g. 1x3x224x224, if it takes one too",
        )
    return known.shapes[0]


def call_shapes(loaded: LoadedModel) -> CallShapes:
    """What a model is called with.

    What the factory or the model says counts most, then :data:`TORCHVISION_INPUTS`, or the configuration of a timm model.

    Raises:
        InputError: nothing says what it is.
    """
    known = _known_shapes(loaded)
    if known is None:
        raise InputError(
            "the model does not say what its input is",
            where=loaded.spec,
            hint="pass --input, e.g. 1x3x224x224, or give the factory an attribute input_shape",
        )
    return known


def says_its_input(loaded: LoadedModel) -> bool:
    """Whether :func:`call_shapes` knows what the model is called with."""
    return _known_shapes(loaded) is not None


def _known_shapes(loaded: LoadedModel) -> CallShapes | None:
    if loaded.input_shape is not None:
        return CallShapes((loaded.input_shape,))
    kind, _, name = loaded.spec.partition(":")
    if kind == "torchvision":
        return _torchvision_shapes(name)
    if kind == "timm":
        configuration = getattr(loaded.model, "pretrained_cfg", None) or {}
        shape = _as_shape((1, *configuration["input_size"])) if "input_size" in configuration else None
        if shape is not None:
            return CallShapes((shape,))
    return None


def _torchvision_shapes(name: str) -> CallShapes:
    return next(known for pattern, known in TORCHVISION_INPUTS if re.fullmatch(pattern, name))


def example_inputs(loaded: LoadedModel, shapes: Sequence[Shape] = ()) -> tuple[Any, ...]:
    """Call arguments of zeros: one tensor, two images, or a list of images, as the model wants it.

    Args:
        shapes: one per tensor, instead of what :func:`call_shapes` knows. For a model that takes a list of images they are
            images (``3x480x640``) or batches of them (``2x3x480x640``).

    Raises:
        InputError: nothing says what the input is, and no shapes are given.

    >>> images, = example_inputs(LoadedModel(nn.Identity(), "torchvision:ssd300_vgg16"))
    >>> [tuple(image.shape) for image in images]
    [(3, 320, 320)]
    """
    kind, _, name = loaded.spec.partition(":")
    listed = kind == "torchvision" and _torchvision_shapes(name).listed
    tensors = [zeros(shape) for shape in (shapes or call_shapes(loaded).shapes)]
    if not listed:
        return tuple(tensors)
    return ([image for tensor in tensors for image in (tensor if tensor.dim() == 4 else tensor[None])],)


def zeros(shape: Shape) -> torch.Tensor:
    """An input of zeros.

    Raises:
        InputError: there is no memory for it.
    """
    try:
        return torch.zeros(shape)
    except RuntimeError as error:
        raise InputError(
            "there is no memory for an input of this size",
            where="x".join(map(str, shape)),
            hint="pass a smaller --input",
        ) from error


def build_model(spec: str, *, weights: Path | None = None, num_classes: int | None = None) -> LoadedModel:
    """Make a model and load its weights; nothing is ever downloaded.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``path/to/file.py:factory`` or ``package.module:factory``.
        weights: a ``.safetensors`` file, or a checkpoint that ``torch.load(..., weights_only=True)`` accepts: a state dict, alone
            or under ``state_dict``, ``model_state_dict`` or ``model``. Its keys are those of the model, all of them perhaps behind the
            prefix of a wrapper (``module.``).
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
    normalization = load_weights(model, weights) if weights is not None else None
    shape = _as_shape(getattr(make, "input_shape", None)) or _as_shape(getattr(model, "input_shape", None))
    return LoadedModel(model.eval(), spec, num_classes, normalization, shape)


def _as_shape(value: object) -> Shape | None:
    """``value`` as a shape with a batch dimension; None if it is something else that happens to have the name."""
    if not isinstance(value, (tuple, list)) or len(value) < 2:
        return None
    return tuple(value) if all(isinstance(size, int) and size > 0 for size in value) else None


def renormalize(model: nn.Module, given: Normalization, wanted: Normalization) -> None:
    """Let a model that was trained on images normalised by ``wanted`` be called on images normalised by ``given``.

    Raises:
        InputError: the two are of different numbers of channels.

    >>> model = nn.Identity()
    >>> renormalize(model, ((0.5,), (0.25,)), ((0.0,), (1.0,)))
    >>> model(torch.zeros(1, 1, 1, 1)).item()
    0.5
    """
    (mean, std), (own_mean, own_std) = (
        tuple(torch.tensor(part).reshape(1, -1, 1, 1) for part in n) for n in (given, wanted)
    )
    if mean.shape != own_mean.shape:
        raise InputError(
            f"the teacher's weights file has a normalisation of {own_mean.numel()} channels, the images have {mean.numel()}",
            hint="correct the file's metadata",
        )
    scale, shift = std / own_std, (mean - own_mean) / own_std
    model.register_forward_pre_hook(partial(_scaled, scale, shift))


def _scaled(scale: Tensor, shift: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = args
    return (images * scale.to(images) + shift.to(images), *others)
