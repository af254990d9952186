"""How channels flow: the abstract value, the analysis state a rule writes to, and the registry.

**The abstract value.** For a tensor of shape ``s`` a rule sees :class:`Channels`: two integer tensors ``label`` and ``path`` of
the rank of ``s``, with size 1 along every axis in which the channel does not vary (``1 x C x 1 x 1`` for a feature map).

- ``label`` says *which* channel lives at a position. Producers mint labels; element-wise operations unify them; data movement
  is executed on them. ``FIXED`` (-1) marks what is no channel: an input image, a constant.
- ``path`` says *how* the value there came about: a 64-bit hash of the operations from the producer on. Two positions with
  equal paths were treated alike. A channel is known by the paths at which each tensor axis meets it, its *signature*:
  channels of equal signature may replace each other, and the places of one are matched to the places of another by path.

This is why merging is exact for channels of one signature, by induction over the graph: if producers and channel-wise
parameters agree inside a cluster, then two positions of equal path hold equal values, and a reader may sum their slices.
What could break the induction makes the path differ: another operation on a part of the channels, a gate that is a different
channel, another place in a flattened map.

**A rule** is a function from a :class:`Site` (one recorded call) to the abstract value of its result. It says which axis of which
tensor produces, reads or rides on which channels; analysis, tying and rewriting all follow from that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.ir import MacSite, Role
from pdc_fx.trace import Recording, function_name

FIXED = -1
Shape = tuple[int, ...]


def mix(*parts: Tensor | int) -> Tensor:
    """Hash integers and integer tensors (broadcast) into one int64 tensor; order matters."""
    result: Tensor | int = 0x1234567
    for part in parts:
        mixed = result ^ part
        if isinstance(mixed, int):  # what an int64 would hold
            mixed = (mixed * 0x9E3779B97F4A7C1 + 0x7F4A7C15 + 2**63) % 2**64 - 2**63
            result = mixed ^ (mixed >> 29)
        else:  # a tensor of our own, so that it may be changed in place
            mixed.mul_(0x9E3779B97F4A7C1).add_(0x7F4A7C15)
            result = mixed.bitwise_xor_(mixed >> 29)
    return torch.as_tensor(result)


@dataclass(frozen=True)
class Channels:
    """Where the channels of one tensor live.

    Attributes:
        shape: the tensor's shape on the example inputs.
        label: int64, of the same rank; size 1 or the full size along each axis.
        path: int64, same shape as ``label``.
        same: axes along which the tensor is known to repeat one value (expanded, or zeros made in the forward pass).
    """

    shape: Shape
    label: Tensor
    path: Tensor
    same: frozenset[int] = frozenset()

    @staticmethod
    def fixed(shape: Shape, same: Iterable[int] = ()) -> Channels:
        """No channel at all."""
        one = torch.full([1] * len(shape), FIXED)
        return Channels(shape, one, torch.zeros_like(one), frozenset(same))

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which the channel varies."""
        return tuple(d for d, size in enumerate(self.label.shape) if size > 1)

    def size(self, dim: int) -> int:
        """Along how many positions of ``dim`` the value may differ."""
        return 1 if dim in self.same else self.shape[dim]

    def then(self, key: int | Tensor, shape: Shape | None = None) -> Channels:
        """The same channels after an operation that treats all positions alike."""
        same = self.same if shape is None else frozenset[int]()
        return Channels(self.shape if shape is None else shape, self.label, mix(self.path, key), same)

    def expanded(self, dims: Iterable[int]) -> Channels:
        """Write the label out along ``dims``; positions that were one now differ in their path."""
        label, path = self.label, self.path
        for dim in dims:
            size = self.shape[dim]
            if label.shape[dim] == 1 and size > 1:
                sizes = [-1] * label.dim()
                sizes[dim] = size
                index = torch.arange(size).reshape([size if d == dim else 1 for d in range(label.dim())])
                label, path = label.expand(sizes), mix(path, index)
        return replace(self, label=label, path=path)

    def collapsed(self) -> Channels:
        """Shrink axes along which the label turns out not to vary to size 1, hashing their paths together."""
        label, path = self.label, self.path
        for dim, size in enumerate(label.shape):
            if size > 1 and bool((label == label.narrow(dim, 0, 1)).all()):
                index = torch.arange(size).reshape([size if d == dim else 1 for d in range(label.dim())])
                label, path = label.narrow(dim, 0, 1), mix(path, index).sum(dim, keepdim=True)
        return replace(self, label=label, path=path)


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, used as it is or with its axes in another ``order``."""

    name: str
    shape: Shape
    order: Shape | None = None

    def axis(self, dim: int) -> int:
        """The axis of the stored tensor that is axis ``dim`` here."""
        return dim if self.order is None else self.order[dim]

    def permuted(self, order: Sequence[int]) -> Weight:
        """The same parameter with its axes in another order: ``w.t()``."""
        return Weight(self.name, tuple(self.shape[d] for d in order), tuple(self.axis(d) for d in order))


Value = Channels | Weight | tuple[Any, ...] | list[Any] | None


@dataclass
class Axis:
    """What an axis of a tensor turned out to hold.

    Attributes:
        path: of what meets the axis.
        call: the key of the call in which it does, to be hashed into the path (of all axes at once, at the end); -1 where it is.
    """

    role: Role
    label: Tensor
    path: Tensor
    call: int = -1

    @property
    def full_path(self) -> Tensor:
        return self.path if self.call < 0 else mix(self.path, self.call)


@dataclass
class Flow:
    """Everything the rules find out: the state of one analysis."""

    recording: Recording
    values: dict[fx.Node, Value] = field(default_factory=dict)
    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str, str]] = field(default_factory=list)
    makers: list[tuple[int, str, str]] = field(default_factory=list)
    bundles: list[Tensor] = field(default_factory=list)
    balanced: list[tuple[Tensor, str]] = field(default_factory=list)
    sites: list[MacSite] = field(default_factory=list)
    fixed_macs: int = 0
    labels: int = 0

    def mint(self, count: int, module: str, tensor: str = "") -> Tensor:
        """``count`` new labels, made by ``module``: the entries of an axis of ``tensor``, or zeros that it pads with."""
        self.makers.append((self.labels, module, tensor))
        self.labels += count
        return torch.arange(self.labels - count, self.labels)

    def unify(self, a: Tensor, b: Tensor, module: str, what: str) -> None:
        """State that ``a`` and ``b`` (same shape) are the same channels, position by position."""
        if a is b:
            return
        a, b = a.reshape(-1), b.reshape(-1)
        both = (a != FIXED) & (b != FIXED)
        if bool(both.all()):
            self.pairs.append((a, b))
            return
        self.pairs.append((a[both], b[both]))
        for one in (a[(b == FIXED)], b[(a == FIXED)]):
            self.freeze(one, f"{what} values that cannot shrink (a model input, a constant or a frozen tensor)", module)

    def bundle(self, labels: Tensor, module: str) -> None:
        """State that each row of ``labels`` is one channel with a place per column."""
        free = (labels != FIXED).all(1)
        self.freeze(labels[~free], "is combined with values that cannot shrink", module)
        self.bundles.append(labels[free])

    def balance(self, labels: Tensor, module: str) -> None:
        """State that each row of ``labels`` is averaged over: exact only if all its clusters are equally large.

        With clusters of ``m`` members each, ``mean(x) = sum over clusters of m x_c / n = mean(x_c)``.
        """
        if bool((labels == FIXED).any()):
            self.freeze(labels, "is averaged with values that cannot shrink", module)
        else:
            self.balanced.append((labels, module))

    def made_together(self, labels: Tensor) -> bool:
        """Whether all these are channels that were minted at once."""
        first, last = int(labels.min()), int(labels.max())
        if first == FIXED:
            return False
        makers = {bisect_right(self.makers, label, key=lambda maker: maker[0]) for label in (first, last)}
        return len(makers) == 1

    def freeze(self, labels: Tensor, reason: str, module: str) -> None:
        labels = labels.reshape(-1)
        labels = labels[labels != FIXED]
        if len(labels):
            self.frozen.append((labels, reason, module))

    def attach(
        self, weight: Weight, dim: int, role: Role, label: Tensor, path: Tensor, module: str, call: int = -1
    ) -> None:
        """State that axis ``dim`` of ``weight`` holds ``label`` (one-dimensional)."""
        dim = weight.axis(dim)
        found = Axis(role, label, path, call)
        known = self.axes.setdefault((weight.name, dim), found)
        if known is found:
            return
        self.unify(known.label, label, module, f"'{weight.name}' is shared with")
        known.path, known.call = mix(known.full_path, found.full_path), -1
        if "consumer" in (known.role, role) and known.role != role:
            for labels in (known.label, label):
                self.freeze(labels, f"axis {dim} of '{weight.name}' both makes and reads channels", module)


@dataclass(frozen=True)
class Site:
    """One recorded call, as a rule sees it."""

    flow: Flow
    node: fx.Node
    key: int

    @property
    def module(self) -> str:
        return str(self.node.meta.get("module", ""))

    @property
    def shape(self) -> Shape:
        """Shape of the result."""
        shape: Shape | None = self.node.meta.get("shape")
        if shape is None:
            raise Declined("does not give one tensor")
        return shape

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name, nodes included."""
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def value(self, argument: Any) -> Value:
        return self.flow.values[argument] if isinstance(argument, fx.Node) else None

    def constant(self, argument: Any) -> Tensor | None:
        """The values of an integer buffer of the model, or None."""
        constant: Tensor | None = argument.meta.get("constant") if isinstance(argument, fx.Node) else None
        return constant

    def weight(self, argument: Any) -> Weight | None:
        """The argument as a parameter of the model, or None where it is something computed."""
        value = self.value(argument)
        return value if isinstance(value, Weight) else None

    def channels(self, argument: Any) -> Channels:
        """The argument as an abstract value; a parameter mints labels along its only axis of size above 1."""
        value = self.value(argument)
        if isinstance(value, Channels):
            return value
        if isinstance(value, Weight):
            return self.riding(value, [d for d, size in enumerate(value.shape) if size > 1])
        raise Declined(f"expects a tensor and got {type(argument).__name__}")

    def riding(self, weight: Weight, dims: Sequence[int]) -> Channels:
        """A channel-wise parameter as an abstract value with channels along its only axis in ``dims``."""
        if len(dims) != 1:
            self.freeze_weight(weight, "is used as a whole")
            return Channels.fixed(weight.shape)
        label = self.ride_new(weight, dims[0])
        return self.laid(label, torch.zeros_like(label), dims[0], weight.shape)

    def ride_new(self, weight: Weight, dim: int) -> Tensor:
        """Labels of a channel-wise parameter that meets channels only later."""
        return self._made(weight, dim, "channelwise")[0]

    def _made(self, weight: Weight, dim: int, role: Role) -> tuple[Tensor, Tensor]:
        known = self.flow.axes.get((weight.name, weight.axis(dim)))
        axis = f"{weight.name}[{weight.axis(dim)}]"
        label = known.label if known else self.flow.mint(weight.shape[dim], weight.name.rpartition(".")[0], axis)
        path = torch.full_like(label, int(mix(0, self.key)))
        self.flow.attach(weight, dim, role, label, path, self.module)
        return label, path

    def freeze_weight(self, weight: Weight, why: str) -> None:
        for dim, size in enumerate(weight.shape):
            axis = weight.name, weight.axis(dim)
            if (known := self.flow.axes.get(axis)) is not None:
                self.flow.freeze(known.label, f"'{weight.name}' {why}", self.module)
            else:
                fixed = torch.full([size], FIXED)
                self.flow.axes[axis] = Axis("channelwise", fixed, torch.zeros_like(fixed))

    def along(self, channels: Channels, dim: int) -> tuple[Tensor, Tensor]:
        """Labels and paths along one axis, one-dimensional.

        Where labels vary along other axes too (a linear layer's output viewed as a map), those of one position along ``dim``
        are unified, each tagged with its place, so that they stay matched one by one.
        """
        dim %= len(channels.shape)
        channels = channels.expanded([dim])
        label = channels.label.movedim(dim, 0).reshape(channels.shape[dim], -1)
        path = channels.path.movedim(dim, 0).reshape(channels.shape[dim], -1)
        return self.bundled(label, path)

    def bundled(self, label: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """Make each row of labels (shape ``(n, k)``) one channel with ``k`` places, told apart by their column."""
        if label.shape[1] > 1:
            self.flow.bundle(label, self.module)
            path = mix(path, torch.arange(label.shape[1])).sum(1, keepdim=True)
        return label[:, 0], path[:, 0]

    def without(self, channels: Channels, dims: Iterable[int]) -> Channels:
        """Channels that no longer vary along ``dims``: those that differ along these only are one, with a place for each."""
        gone = sorted(set(dims) & set(channels.varying))
        if not gone:
            return channels
        last = range(-len(gone), 0)
        label, path = (t.movedim(gone, list(last)) for t in (channels.label, channels.path))
        count = prod(label.shape[-len(gone) :])
        one_label, one_path = self.bundled(label.reshape(-1, count), path.reshape(-1, count))
        sizes = [1 if d in gone else size for d, size in enumerate(channels.label.shape)]
        return replace(channels, label=one_label.reshape(sizes), path=one_path.reshape(sizes))

    def laid(self, label: Tensor, path: Tensor, dim: int, shape: Shape | None = None) -> Channels:
        """One-dimensional labels laid along axis ``dim`` of the result."""
        shape = self.shape if shape is None else shape
        sizes = [1] * len(shape)
        sizes[dim] = len(label)
        return Channels(shape, label.reshape(sizes), path.reshape(sizes)).collapsed()

    def produce(self, weight: Weight, dim: int) -> tuple[Tensor, Tensor]:
        """New channels made along axis ``dim`` of ``weight`` (the old ones where the weight was met before)."""
        return self._made(weight, dim, "producer")

    def read(self, weight: Weight, dim: int, label: Tensor, path: Tensor) -> None:
        """Axis ``dim`` of ``weight`` reads these channels; merged ones are summed."""
        self.flow.attach(weight, dim, "consumer", label, path, self.module, self.key)

    def ride(self, argument: Any, dim: int, label: Tensor, path: Tensor) -> None:
        """A channel-wise parameter (or None): its entries must agree wherever channels are merged."""
        if argument is None:
            return
        weight = argument if isinstance(argument, Weight) else self.weight(argument)
        if weight is not None:
            self.flow.attach(weight, dim, "channelwise", label, path, self.module, self.key)
            return
        other, _ = self.along(self.channels(argument), dim)
        self.flow.unify(label, other, self.module, "meets")

    def hold(self, weight: Weight, dim: int, role: Role) -> None:
        """State that axis ``dim`` of ``weight`` carries no channels here."""
        fixed = torch.full([weight.shape[dim]], FIXED)
        self.flow.attach(weight, dim, role, fixed, torch.zeros_like(fixed), self.module)

    def freeze(self, value: Any, reason: str) -> None:
        """Freeze every channel in ``value`` (an argument, or anything that holds arguments)."""
        if isinstance(value, fx.Node):
            self._freeze_value(self.flow.values[value], reason)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.freeze(item, reason)
        elif isinstance(value, dict):
            self.freeze(list(value.values()), reason)
        elif isinstance(value, slice):
            self.freeze([value.start, value.stop, value.step], reason)

    def _freeze_value(self, value: Value, reason: str) -> None:
        if isinstance(value, Channels):
            self.flow.freeze(value.label, reason, self.module)
        elif isinstance(value, Weight):
            self.freeze_weight(value, reason)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self._freeze_value(item, reason)

    def multiply_accumulates(self, weight: Weight, uses: int) -> None:
        self.flow.sites.append(MacSite(weight.name, uses, self.module))


@dataclass(frozen=True)
class Edit:
    """A call in an fx graph whose written-out sizes must follow the channels that went.

    Attributes:
        node: the call, to be changed in place.
        source: the shape of its first argument before.
        parts: the shapes of its results before, where it gives several.
        kept_in, kept_out: for each axis of the first argument and of the result a bool mask of the positions that
            remain, or None where all do.
    """

    node: fx.Node
    source: Shape
    parts: tuple[Shape, ...]
    kept_in: tuple[Tensor | None, ...]
    kept_out: tuple[Tensor | None, ...]

    @property
    def changed(self) -> dict[int, int]:
        """Axis of the result -> its size now, for the axes that shrink."""
        return {d: int(mask.sum()) for d, mask in enumerate(self.kept_out) if mask is not None and not bool(mask.all())}

    def get(self, position: int, name: str, default: Any = None) -> Any:
        return self.node.args[position] if position < len(self.node.args) else self.node.kwargs.get(name, default)

    def set(self, position: int, name: str, value: Any) -> None:
        if position < len(self.node.args):
            self.node.update_arg(position, value)
        else:
            self.node.update_kwarg(name, value)


EditRule = Callable[[Edit], None]
_EDITS: dict[Any, EditRule] = {}


def literal(*targets: Any) -> Callable[[EditRule], EditRule]:
    """Register how the written-out sizes of torch functions are edited."""

    def register(function: EditRule) -> EditRule:
        for target in targets:
            for item in functions(target) if isinstance(target, str) else [target]:
                _EDITS[item] = function
        return function

    return register


def as_gather(edit: Edit) -> None:
    """The edit of functions whose order along an axis is written out: they are re-emitted as gathers, never edited in place."""
    raise AssertionError(f"{edit.node} should have been written as a gather")


def edit_for(target: Any) -> EditRule | None:
    """The edit of a function that may hold sizes as literals, or None."""
    return _EDITS.get(target)


class Declined(Exception):
    """Raised by a rule that does not cover a call; the text says why and becomes the reason for freezing it."""


Rule = Callable[[Site], Value]
_RULES: dict[Any, Rule] = {}
_MOVES: set[Any] = set()

_NAMESPACES = (torch, torch.Tensor, torch.nn.functional, torch._C._nn, torch.special, torch._VF)


def functions(names: str) -> list[Any]:
    """Every torch function known under these names (as ``torch.add``, ``Tensor.add``, ``F.relu`` ...), in-place forms included."""
    found = []
    for name in names.split():
        spelled = (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__")
        matches = [getattr(space, s) for space in _NAMESPACES for s in spelled if callable(getattr(space, s, None))]
        if not matches:
            raise LookupError(f"no torch function is called {name!r}")
        found.extend(matches)
    return found


def getter(name: str) -> Any:
    """The function behind a tensor property, as it is recorded: ``getter("T")``."""
    return (
        vars(torch._C.TensorBase)[name].__get__
        if name in vars(torch._C.TensorBase)
        else vars(torch.Tensor)[name].__get__
    )


def rule(*targets: Any, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for torch functions, given as objects or as a string of names.

    ``moves`` says that the function only puts the values of its first argument into other places, so that it, or a chain of such
    functions, may be replaced by a gather where its written-out form does not fit the smaller network.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            for item in functions(target) if isinstance(target, str) else [target]:
                _RULES[item] = function
                if moves:
                    _MOVES.add(item)
        return function

    return register


def moves(target: Any) -> bool:
    """Whether a function only moves the values of its first argument."""
    return target in _MOVES


def operator_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of other libraries by name (``torchvision.roi_align``), without importing these."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def rule_for(target: Any) -> Rule | None:
    """The rule of a torch function, or None."""
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket
    return _RULES.get(str(target) if isinstance(target, torch._ops.OpOverloadPacket) else target)


def registered() -> dict[Any, Rule]:
    """A copy of the registry: torch function -> rule."""
    return dict(_RULES)


def apply_rule(site: Site) -> Value:
    """Run the rule of a call; without one, or where it declines, freeze all that the call touches and say why."""
    function = rule_for(site.node.target)
    try:
        if function is None:
            raise Declined("has no rule")
        if site.node.meta.get("aliased"):
            raise Declined("changes in place a tensor that other views share")
        return function(site)
    except Declined as reason:
        name, where = function_name(site.node.target), site.node.meta.get("source", "")
        site.freeze(
            [list(site.node.args), dict(site.node.kwargs), site.node.meta.get("aliased", [])],
            f"{name} {reason} ({where})",
        )
        return fixed_result(site.node)


def fixed_result(node: fx.Node) -> Value:
    """The abstract value of a result of which nothing is known."""
    shape = node.meta.get("shape")
    return None if shape is None else Channels.fixed(shape)


def dims_of(argument: Any, rank: int) -> tuple[int, ...]:
    """An axis argument (None for all, an integer, or several) as sorted non-negative axes."""
    if argument is None:
        return tuple(range(rank))
    dims: Sequence[int] = [argument] if isinstance(argument, int) else list(argument)
    return tuple(sorted({d % rank for d in dims})) if rank else ()
