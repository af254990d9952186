"""What layers read and give on real images: the statistics behind calibration.

A *reader* is one use of a parameter by a convolution or a linear layer, ``y = W x + b`` at every position. Written out over the
``T`` taps of its kernel, with ``x`` the ``n`` inputs of each of its ``g`` groups under each tap, it is a matrix product of

    patches    (samples, g, n, T)      the input under the kernel at some output positions of every image
    weight     (g, out / g, n, T)

Readers are found by their torch function while the model runs (``TorchFunctionMode``), whatever modules there are. Positions are
drawn at random, by image, from a generator that is seeded by the reader, so that two networks are seen at the same places.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pdc_fx.errors import InputError
from pdc_fx.ir import ChannelGroups
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.convolution import Window, layer_call, window
from pdc_fx.trace import Inputs, as_arguments, evaluating, fresh, in_mode

_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


@dataclass(frozen=True)
class Reader:
    """One call of a convolution or a linear layer.

    Attributes:
        weight, bias: names of its parameters; ``bias`` is None where it has none.
        parameter: the weight itself, shape ``(out, n, *kernel)``.
        input: what it reads, ``(N, g n, *space)`` for a convolution, ``(.., n)`` for a linear layer.
        window: how the kernel of a convolution moves; None for a linear layer.
        samples: the most positions that are looked at.
    """

    weight: str
    bias: str | None
    parameter: Tensor
    input: Tensor
    groups: int
    window: Window | None
    samples: int

    @cached_property
    def _windows(self) -> Tensor:
        """``(N, g n, *space of the output, *kernel)``, a view of the padded input."""
        assert self.window is not None
        moves = self.window
        pairs = zip(reversed(moves.before), reversed(moves.behind), strict=True)  # the last axis first
        x = F.pad(self.input, [p for pair in pairs for p in pair])
        for i, (k, s, d) in enumerate(zip(self.parameter.shape[2:], moves.stride, moves.dilation, strict=True)):
            x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
        return x

    def _space(self) -> tuple[int, ...]:
        return tuple(self._windows.shape[2 : 2 + len(self.parameter.shape) - 2])

    @cached_property
    def _places(self) -> tuple[Tensor, ...]:
        """Image and position of every sample, or the row of a linear layer."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.weight.encode()))
        device = self.input.device
        if self.window is None:
            rows = self.input.numel() // self.input.shape[-1]
            chosen = torch.randperm(rows, generator=generator)[: self.samples].sort().values
            return (chosen.to(device),)
        images, space = len(self.input), self._space()
        each = max(1, min(prod(space), self.samples // images))
        places = torch.rand(images, prod(space), generator=generator).argsort(1)[:, :each].to(device)
        found = [torch.arange(images, device=device)[:, None].expand_as(places)]
        for size in reversed(space):
            found.insert(1, places % size)
            places = places // size
        return tuple(found)

    @property
    def _index(self) -> Any:
        """What takes all channels at those places: shape ``(N, each, channels, ..)``."""
        image, *space = self._places
        return (image, slice(None), *space)

    def patches(self) -> Tensor:
        """Shape ``(samples, g, n, T)``."""
        if self.window is None:
            return self.input.reshape(-1, 1, self.input.shape[-1], 1)[self._places]
        found = self._windows[self._index].flatten(0, 1)
        return found.reshape(len(found), self.groups, -1, prod(self.parameter.shape[2:]))

    def outputs(self, output: Tensor) -> Tensor:
        """What it gave at those places: shape ``(samples, g, out / g)``."""
        if self.window is None:
            return output.reshape(-1, 1, output.shape[-1])[self._places]
        found = output[self._index].flatten(0, 1)
        return found.reshape(len(found), self.groups, -1)

    def matrix(self) -> Tensor:
        """The weight: shape ``(g, out / g, n, T)``."""
        weight = self.parameter.detach()
        return weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)


@dataclass(frozen=True)
class Norm:
    """One call of a batch norm with running statistics that move in training; ``variance`` names these.

    ``values``: shape ``(N, C, ..)``, what it normalises.
    """

    variance: str
    running_mean: Tensor
    running_var: Tensor
    values: Tensor

    def reestimate(self) -> None:
        """Set its statistics to those of ``values``, as one step of training on all of them would with momentum 1."""
        values = self.values.transpose(0, 1).flatten(1).double()
        variance, mean = torch.var_mean(values, dim=1, correction=1 if values.shape[1] > 1 else 0)
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)


class Watch(TorchFunctionMode):
    """Calls ``before`` and ``after`` each reader and ``norm`` before each batch norm while a model runs.

    Attributes:
        uses: how many functions were given each parameter or buffer.
        normed: running variance -> the weight whose outputs, as they are, that batch norm is given.
        groups: weight -> groups of the convolution that reads with it; 1 for a linear layer.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        tensors = named_tensors(model)
        self._names = {id(t): name for name, t in reversed(tensors.items())}
        self.samples = samples
        self.uses: Counter[str] = Counter()
        self.normed: dict[str, str] = {}
        self.groups: dict[str, int] = {}
        self._last: tuple[str, Tensor, int, int] | None = None
        self._made = WeakIdKeyDictionary()  # output of a reader -> its weight
        self._looked_at: Counter[str] = Counter()  # how many functions made a tensor of the outputs of each weight
        steady = {m for m in model.modules() if isinstance(m, _BatchNorm)} - set(moving_norms(model))
        self._steady = {id(norm.running_var) for norm in steady}

    @property
    def scale_free(self) -> set[str]:
        """Weights that mean the same at any scale, and whose bias means nothing: used once, with a batch norm right behind that alone
        looks at what they make."""
        return {w for w in self.normed.values() if self.uses[w] == 1 and self._looked_at[w] == 1}

    def before(self, reader: Reader) -> None:
        """May change the parameters, which are used only then."""

    def after(self, reader: Reader, output: Tensor) -> None:
        """``output`` is what the reader gave."""

    def norm(self, norm: Norm) -> None:
        """May change the statistics, which are used only then."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.uses.update(name for a in (*args, *kwargs.values()) if (name := self._names.get(id(a))) is not None)
        reader = self._reader(func, args, kwargs)
        if reader is not None:
            self.before(reader)
        elif func is F.batch_norm and (norm := self._norm(args, kwargs)) is not None:
            self._pair(norm)
            self.norm(norm)
        output = func(*args, **kwargs)
        if _tensors(output):  # asking for a size is no look at the values
            self._looked_at.update({self._made[tensor] for tensor in _tensors((args, kwargs)) if tensor in self._made})
        if reader is not None:
            self.groups[reader.weight] = reader.groups
            self._last = reader.weight, output, output._version, len(reader.parameter)
            self._made[output] = reader.weight
            self.after(reader, output)
        return output

    def _pair(self, norm: Norm) -> None:
        if self._last is None:
            return
        weight, output, version, filters = self._last
        unchanged = output._version == version  # nothing was done to it in place
        whole = norm.values.numel() == output.numel() and len(norm.running_var) == filters  # no part, and not flattened
        if norm.values.data_ptr() == output.data_ptr() and unchanged and whole:
            self.normed[norm.variance] = weight

    def _reader(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Reader | None:
        kind, given = layer_call(func, args, kwargs) or (None, {})
        if kind not in ("conv", "linear"):
            return None
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        name = self._names.get(id(weight))
        if name is None or (kind == "conv" and x.dim() != weight.dim()):
            return None
        if bias is not None and id(bias) not in self._names:
            return None
        moves = window(given, tuple(weight.shape[2:])) if kind == "conv" else None
        bias_name = None if bias is None else self._names[id(bias)]
        return Reader(name, bias_name, weight, x.detach(), given.get("groups", 1), moves, self.samples)

    def _norm(self, args: Any, kwargs: Mapping[str, Any]) -> Norm | None:
        given = {**dict(zip(_NORM_ARGUMENTS, args, strict=False)), **kwargs}
        name = self._names.get(id(given.get("running_var")))
        if name is None or given.get("training") or id(given["running_var"]) in self._steady:
            return None
        return Norm(name, given["running_mean"], given["running_var"], given["input"].detach())


def moving_norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch norms whose statistics move while the model trains: its own ``train`` may keep some in eval mode."""
    with in_mode(model, training=True):
        return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class ReestimateNorms(Watch):
    """Sets the statistics of each batch norm, in the order in which they run, to those of what it is given."""

    def norm(self, norm: Norm) -> None:
        norm.reestimate()


def run_watched(model: nn.Module, inputs: Inputs, watch: Watch) -> None:
    """Run ``model`` once, in eval mode, under a watch."""
    with evaluating(model), watch:
        model(*fresh(as_arguments(inputs)))


def require_images(images: Any, groups: ChannelGroups) -> None:
    """Raise :class:`InputError` unless ``images`` are a tensor of two or more, finite, of the shape that ``groups`` were found with."""
    if len(groups.inputs) != 1:
        raise InputError(f"calibration works for models of one tensor, this one takes {len(groups.inputs)}")
    shape = groups.inputs[0][0][1:]
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 2:
        where = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError("calibration images are one float tensor, the images first", where=where)
    if tuple(images.shape[1:]) != shape:
        raise InputError(
            f"the images are {'x'.join(map(str, images.shape[1:]))}, the groups were found with {'x'.join(map(str, shape))}",
            hint="analyse the model with an example of the size of the images",
        )
    if str(images.dtype).removeprefix("torch.") != groups.inputs[0][1]:
        raise InputError(
            f"the images are {str(images.dtype).removeprefix('torch.')}, the groups were found with {groups.inputs[0][1]}",
            hint="give images in the model's own precision",
        )
    if len(images) < 2:
        raise InputError(f"calibration needs images, not {len(images)}", hint="a few hundred are enough")
    if not bool(images.isfinite().all()):
        raise InputError("the calibration images hold values that are not finite")
