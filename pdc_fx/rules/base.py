"""What a rule works with: the call it is for, and the analysis state it writes to.

A *rule* is a function from a :class:`Site` (one recorded call) to the abstract value of its result (:mod:`pdc_fx.rules.channels`). It says
which axis of which tensor produces, reads or rides on which channels; analysis, tying and rewriting all follow from that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from pdc_fx.ir import MacSite, Role
from pdc_fx.rules.channels import FIXED, Channels, Shape, mix
from pdc_fx.rules.weights import View, Weight
from pdc_fx.trace import Recording, function_name

Value = Channels | Weight | View | tuple[Any, ...] | list[Any] | None


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
    """Everything the rules find out: the state of one analysis. A label is a number that stands for one channel at one place.

    Attributes:
        recording: the calls that are analysed.
        values: what is known of the result of each call.
        axes: (tensor, axis) -> the labels along it, one an entry, and in which role.
        pairs: labels that are one channel, two tensors of one shape each: position by position.
        frozen: labels that must stay, the reason, and the module at which it arose.
        makers: the first label of each set that was minted at once, ascending; the module; the axis that holds them, or nothing.
        bundles: ``channels x places``: the labels of a row are places of one channel, told apart by their columns.
        spreads: ``channels x places``: the labels of a row from the second on are copies of the first.
        meetings: labels and paths of positions that met, for what tells places apart.
        balanced: labels whose clusters must be of one size, and the module that asks for it.
        sites: where multiply-accumulates happen; fixed_macs: those that no merge changes.
        unheld: (module, reason) -> channels that no parameter holds, and which stay.
        settled: parameter -> the axis of it that turned out to hold channels, where views of it were followed along several.
        labels: how many labels there are.
        like: the analysis of the network that this one was made of by a merge: parameters hold channels along the same axes, even where a
            single one is left.
    """

    recording: Recording
    values: dict[fx.Node, Value] = field(default_factory=dict)
    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str, str]] = field(default_factory=list)
    makers: list[tuple[int, str, str]] = field(default_factory=list)
    bundles: list[Tensor] = field(default_factory=list)
    spreads: list[Tensor] = field(default_factory=list)
    meetings: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    balanced: list[tuple[Tensor, str]] = field(default_factory=list)
    sites: list[MacSite] = field(default_factory=list)
    unheld: dict[tuple[str, str], int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    fixed_macs: int = 0
    labels: int = 0
    like: Flow | None = None

    def first(self, call: fx.Node) -> Value:
        """The abstract value of the tensor that a call is given first; None where it is given none."""
        argument = argument_of(call, 0, "input")
        return self.values.get(argument) if isinstance(argument, fx.Node) else None

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

    def meet(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
        """Note how the values came about that two (label, path) meet: it tells the places of a channel apart."""
        for (label, _), (_, path) in ((a, b), (b, a)):
            self.meetings.append((label.reshape(-1), path.expand_as(label).reshape(-1)))

    def bundle(self, labels: Tensor, module: str) -> None:
        """State that each row of ``labels`` is one channel with a place per column."""
        free = (labels != FIXED).all(1)
        self.freeze(labels[~free], "is combined with values that cannot shrink", module)
        self.bundles.append(labels[free])

    def spread(self, rows: Tensor, module: str) -> None:
        """State that the labels of each row, but for the first, are places that the first was given.

        They are one channel, and what tells the first from other places of its channel tells these from theirs, too.
        """
        self.bundle(rows, module)
        self.spreads.append(rows)

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
        makers = self.makers_of(labels.reshape(-1))
        return bool((labels != FIXED).all()) and bool((makers == makers[0]).all())

    def makers_of(self, labels: Tensor) -> Tensor:
        """The number of who minted each label; 0 for what is no channel."""
        starts = torch.tensor([start for start, *_ in self.makers], dtype=torch.int64)
        return torch.searchsorted(starts, labels.contiguous(), right=True)

    def freeze(self, labels: Tensor, reason: str, module: str) -> None:
        labels = labels.reshape(-1)
        labels = labels[labels != FIXED]
        if len(labels):
            self.frozen.append((labels, reason, module))

    def holds(self, weight: Weight, dim: int) -> bool:
        """Whether channels were found along an axis of a parameter."""
        axis = self.axes.get((weight.name, weight.axis(dim)))
        return axis is not None and bool((axis.label != FIXED).any())

    def settle(self) -> None:
        """Say of views of parameters, now that all is known, where their channels lie."""

        def found(value: Value) -> Value:
            if isinstance(value, (list, tuple)):
                return type(value)(map(found, value))
            if not isinstance(value, View):
                return value
            axis = self.settled.get(value.weight.name)
            dim = next((dim for dim in value.along if value.weight.axis(dim) == axis), None)
            if dim is None or axis is None:
                return Channels.fixed(value.shape)
            return value.holding(dim, self.axes[value.weight.name, axis].label)

        self.values = {node: found(value) for node, value in self.values.items()}

    def is_frozen(self, labels: Tensor) -> bool:
        """Whether all these labels are known to stay by now."""
        labels = labels[labels != FIXED]
        return not len(labels) or bool(torch.isin(labels, torch.cat([f[0] for f in self.frozen] or [labels[:0]])).all())

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
        return argument_of(self.node, position, name, default)

    @property
    def leaf(self) -> nn.Module:
        """The module itself, where the rule is for a module class: its options (``site.leaf.stride``) are attributes."""
        leaf = self.node.meta.get("leaf")
        if not isinstance(leaf, nn.Module):
            raise LookupError(f"{function_name(self.node.target)} is no leaf module")
        return leaf

    def own(self, name: str) -> Weight:
        """A parameter or buffer of the leaf module by the name it has in it: ``weight``, ``gate.bias``."""
        weight = self.optional(name)
        if weight is None:
            raise Declined(f"has no parameter '{name}' here")
        return weight

    def optional(self, name: str) -> Weight | None:
        """As :meth:`own`, or None where the module has None in its place (``bias=False``)."""
        node = self.node.meta.get("own", {}).get(name)
        if node is None:
            path, _, last = name.rpartition(".")
            if not hasattr(self.leaf.get_submodule(path), last):
                raise LookupError(f"{type(self.leaf).__name__} has no parameter or buffer called '{name}'")
            return None
        return self.weight(node)

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
        if (view := self.view(value)) is not None:
            return self.riding(view, [] if view.moved else list(view.along))
        raise Declined(f"expects a tensor and got {type(argument).__name__}")

    def view(self, value: Value) -> View | None:
        """A parameter, or what was made of one, with the axes of it that might hold channels: those of more than one entry."""
        if not isinstance(value, Weight):
            return value if isinstance(value, View) else None
        like, dims = self.flow.like, range(len(value.shape))
        return View.of(value, value.wide if like is None else [dim for dim in dims if like.holds(value, dim)])

    def meeting(self, argument: Any, varying: Collection[int], beside: Collection[int] = ()) -> Channels:
        """As :meth:`channels`, but of a parameter that axis holds channels which lies where what it meets has some.

        Args:
            varying: axes along which what it meets has channels.
            beside: those to leave aside where several fit: along them channels of several layers lie.
        """
        view = self.view(self.value(argument))
        if view is None or not varying:
            return self.channels(argument)
        fits = [dim for dim, along in view.along.items() if along.varying and set(along.varying) <= set(varying)]
        if len(fits) > 1:
            fits = [dim for dim in fits if not set(view.along[dim].varying) <= set(beside)]
        if fits:
            return self.riding(view, fits)
        for dim in view.weight.wide:
            self.hold(view.weight, dim, "channelwise")
        everywhere = frozenset(range(0 if view.weight.wide else len(view.shape)))
        repeated = [along.same for along in view.along.values()] or [everywhere]
        return Channels.fixed(view.shape, frozenset.intersection(*repeated))

    def riding(self, view: View, dims: Sequence[int]) -> Channels:
        """A channel-wise parameter as an abstract value with channels along its only axis in ``dims``; others hold none."""
        weight = view.weight
        if len(dims) != 1:
            self.freeze_weight(weight, "is used as a whole")
            return Channels.fixed(view.shape)
        if view.moved:  # what is moved otherwise another time holds channels along an axis that is held here, and stays
            self.flow.settled.setdefault(weight.name, weight.axis(dims[0]))
        for dim in weight.wide:
            if dim not in dims:
                self.hold(weight, dim, "channelwise")
        return view.holding(dims[0], self.ride_new(weight, dims[0]))

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
            self.freeze_value(self.flow.values[value], reason)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.freeze(item, reason)
        elif isinstance(value, dict):
            self.freeze(list(value.values()), reason)
        elif isinstance(value, slice):
            self.freeze([value.start, value.stop, value.step], reason)

    def freeze_value(self, value: Value, reason: str) -> None:
        """Freeze every channel in an abstract value."""
        if isinstance(value, Channels):
            self.flow.freeze(value.label, reason, self.module)
        elif isinstance(value, Weight):
            self.freeze_weight(value, reason)
        elif isinstance(value, View):
            self.freeze_weight(value.weight, reason)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.freeze_value(item, reason)

    def multiply_accumulates(self, weight: Weight, uses: int) -> None:
        self.flow.sites.append(MacSite(weight.name, uses, self.module))


class Declined(Exception):
    """Raised by a rule that does not cover a call; the text says why and becomes the reason for freezing it.

    ``made`` is how many channels the call makes that no parameter of the model holds, for they stay as well.
    """

    def __init__(self, reason: str, *, made: int = 0) -> None:
        super().__init__(reason)
        self.made = made


def weightless(given: fx.Node, made: int) -> Declined:
    """What to raise where the weight of a layer, which makes so many channels, is no parameter of the model."""
    if given.op == "get_attr":
        return Declined("has a weight that is no parameter of the model; register its layer (nn.ModuleList)", made=made)
    return Declined(
        "has a weight that is computed in the forward pass; fold it into a plain parameter first", made=made
    )


Rule = Callable[[Site], Value]


_AS_IN_NUMPY = {"input": ("x", "a", "x1", "tensor"), "other": ("x2",), "dim": ("axis",), "keepdim": ("keepdims",)}
"""Names that PyTorch takes for its own."""


def argument_of(node: Any, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, of which ``args`` and ``kwargs`` are attributes, by position or by name, which may be NumPy's."""
    if position < len(node.args):
        return node.args[position]
    return next((node.kwargs[known] for known in (name, *_AS_IN_NUMPY.get(name, ())) if known in node.kwargs), default)


def beside_first(call: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, by position and by name, but for the tensor that it is given first."""
    first = argument_of(call, 0, "input")
    return call.args[1:], {name: value for name, value in call.kwargs.items() if value is not first}


def fixed_result(node: fx.Node) -> Value:
    """The abstract value of a result of which nothing is known."""
    shape = node.meta.get("shape")
    return None if shape is None else Channels.fixed(shape)
