"""Recording -> channel groups: which channels must live and go together, and which may replace each other.

1. Every node of the recording is given to its rule (:mod:`pdc_fx.rules`), in order. Out come pairs of labels that are one
   channel, the axes of tensors that hold labels, and labels that must stay.
2. The pairs are solved once: a *channel* is a connected component of labels.
3. A channel's *signature* is the multiset of (tensor axis, role, path) at which it is held. Channels of equal signature form a
   group. A channel that meets one axis twice under the same path cannot be matched place by place and is frozen.
4. Channels that are averaged over (layer norm) form clusters of one size, in all groups that take part: such groups carry the
   same ``balance`` number. Where one of them must stay, all must.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx

from pdc_fx.ir import ChannelGroup, ChannelGroups, FrozenChannels, Integers, Member, Role
from pdc_fx.rules import Channels, Flow, Site, Weight, apply_rule
from pdc_fx.rules.channels import FIXED, mix
from pdc_fx.rules.registry import rule_for
from pdc_fx.trace import Recording


@dataclass(frozen=True)
class Solution:
    """Groups, and what is needed to tell for any label which channel of which group it is."""

    groups: ChannelGroups
    flow: Flow
    unit: Integers  # label -> channel number
    group: Integers  # channel number -> group number, or -1
    row: Integers  # channel number -> its row in the group, or -1
    reason: Integers  # channel number -> number of the reason for which it must stay, or -1
    reasons: tuple[str, ...]

    def frozen_producers(self) -> tuple[str, ...]:
        """The tensors that make channels of which none may go."""
        found = []
        for (tensor, _), axis in self.flow.axes.items():
            label = axis.label[axis.label != FIXED].numpy()
            if axis.role == "producer" and len(label) and (self.group[self.unit[label]] < 0).all():
                found.append(tensor)
        return tuple(found)


def flow_of(recording: Recording, like: Flow | None = None) -> Flow:
    """Run every rule over the recording.

    Args:
        like: the analysis of the network before channels went, where the recording is of the smaller one.
    """
    flow = Flow(recording, like=like)
    for key, node in enumerate(recording.graph.nodes):
        site = Site(flow, node, key)
        if node.op == "placeholder":
            flow.values[node] = Channels.fixed(node.meta["shape"])
        elif node.op == "get_attr":
            known = not node.meta["unknown"]
            flow.values[node] = Weight(node.target, node.meta["shape"]) if known else Channels.fixed(node.meta["shape"])
        elif node.op == "output":
            site.freeze(list(node.args), "is an output of the model")
        else:
            flow.values[node] = apply_rule(site, rule_for(node.target))
    flow.settle()
    for (tensor, dim), axis in list(flow.axes.items()):
        if (reason := recording.overlapping.get(tensor)) is not None:
            flow.freeze(axis.label, reason, tensor.rpartition(".")[0])
        if dim in recording.unequal.get(tensor, ()):
            reason = f"'{tensor}' is a mask or holds counts that differ, of which there is no mean"
            flow.freeze(axis.label, reason, tensor.rpartition(".")[0])
    return flow


@dataclass(frozen=True)
class Stuck:
    """Channels that must stay for a reason that no rule knows: a size in the program that cannot be edited.

    ``places`` holds one (tensor, axis, position) of each, which means the same in another recording of the same model.
    """

    places: tuple[tuple[str, int, int], ...]
    reason: str
    module: str


def places_of(units: Integers, solution: Solution) -> tuple[tuple[str, int, int], ...]:
    """One place of each channel that tensors hold."""
    wanted = set(units.tolist())
    places: dict[int, tuple[str, int, int]] = {}
    for (tensor, dim), axis in solution.flow.axes.items():
        for position, label in enumerate(axis.label.tolist()):
            if label != FIXED and (unit := int(solution.unit[label])) in wanted:
                places.setdefault(unit, (tensor, dim, position))
    return tuple(places.values())


def solve(
    flow: Flow,
    frozen_names: tuple[str, ...] = (),
    *,
    stuck: Iterable[Stuck] = (),
    movable: Callable[[Flow, Integers], frozenset[fx.Node]] | None = None,
) -> Solution:
    """Connected components, signatures, groups.

    Args:
        stuck: what must stay beyond what the rules say.
        movable: given the flow and the channel number of every label, the nodes at which channels may be spread over
            several axes, since the program will be edited there.
    """
    unit = _components(flow)
    slots = _slots(flow, unit)
    count = int(unit.max()) + 1 if len(unit) else 0
    reasons = _frozen_units(flow, unit, slots, frozen_names, stuck, movable(flow, unit) if movable else frozenset())
    signature = _signatures(slots)
    held = np.diff(slots.starts) > 0
    order = _first_labels(unit, count)
    starts = np.asarray([start for start, *_ in flow.makers], dtype=np.int64)
    maker = np.searchsorted(starts, order, side="right") - 1

    def alike() -> list[Integers]:
        """The channels that need not stay, by signature, in the order in which they are made."""
        members = np.flatnonzero(held & (reasons.number < 0))
        classes = equal_rows(signature, members[np.argsort(order[members])])
        alone = [units for units in classes if len(units) == 1]
        if alone:
            reasons.add(np.concatenate(alone), "no other channel is used in the same way")
        return [units for units in classes if len(units) > 1]

    classes = alike()
    balance = _balance(flow, unit, count)
    if _freeze_unbalanced(flow, unit, balance, classes, reasons):
        classes = alike()
    group_of, row_of = np.full(count, -1), np.full(count, -1)
    groups: list[ChannelGroup] = []
    for units in classes:
        row_of[units], group_of[units] = np.arange(len(units)), len(groups)
        number = None if balance is None or balance[units[0]] < 0 else int(balance[units[0]])
        groups.append(_group(slots, units, flow.makers[maker[units[0]]][1], number))
    recording = flow.recording
    result = ChannelGroups(
        groups=tuple(groups),
        frozen=_summary(flow, reasons, np.flatnonzero(held), order, maker),
        unreached=recording.unreached,
        sites=tuple(flow.sites),
        fixed_macs=flow.fixed_macs,
        shapes=recording.shapes,
        parameters=recording.parameters,
        inputs=recording.inputs,
        frozen_names=frozen_names,
    )
    return Solution(result, flow, unit, group_of, row_of, reasons.number, tuple(reasons.texts))


def equal_rows(table: Integers, members: Integers) -> list[Integers]:
    """``members``, numbers of rows, by equal rows of ``table``: in the order given, the classes by their first member.

    >>> [rows.tolist() for rows in equal_rows(np.array([[7, 1], [5, 1], [7, 1], [7, 2]]), np.arange(4))]
    [[0, 2], [1], [3]]
    """
    if not len(members):
        return []
    order = np.lexsort(table[members].T)
    starts = np.flatnonzero((np.diff(table[members[order]], axis=0) != 0).any(1)) + 1
    classes = np.split(members[order], starts)
    first = order[np.append(0, starts)]  # the sort is stable
    return [classes[i] for i in np.argsort(first)]


def _balance(flow: Flow, unit: Integers, count: int) -> Integers | None:
    """Channel number -> number of the set of channels whose clusters must be equally large, or -1."""
    if not flow.balanced:
        return None
    linked = [unit[labels.reshape(-1).numpy()] for labels, _ in flow.balanced]
    a, b = np.concatenate([np.full(len(u), u[0]) for u in linked]), np.concatenate(linked)
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    component = connected_components(graph, directed=False)[1].astype(np.int64)
    balance = np.full(count, -1)
    touched = np.isin(component, component[b])
    balance[touched] = np.unique(component[touched], return_inverse=True)[1]
    return balance


def _freeze_unbalanced(
    flow: Flow, unit: Integers, balance: Integers | None, classes: list[Integers], reasons: _Reasons
) -> bool:
    """Freeze balanced channels that cannot be: next to one that must stay, or in numbers that no cluster size divides."""
    if balance is None:
        return False
    free = np.zeros(len(balance), dtype=bool)
    size: dict[int, int] = {}
    for units in classes:
        free[units] = True
        number = int(balance[units[0]])
        size[number] = gcd(size.get(number, 0), len(units))
    bad = np.zeros(int(balance.max()) + 1, dtype=bool)
    bad[balance[(balance >= 0) & ~free]] = True
    why = {int(n): "is averaged together with channels that must stay" for n in np.flatnonzero(bad)}
    for number, divisor in size.items():
        if number >= 0 and divisor == 1:
            why.setdefault(number, "is averaged together with others, in numbers that have no common divisor")
    where = {int(balance[unit[labels.reshape(-1)[0]]]): module for labels, module in reversed(flow.balanced)}
    for number, text in why.items():
        reasons.add(np.flatnonzero(balance == number), f"{text} (at '{where.get(number, '')}')")
    return bool(free[np.isin(balance, list(why))].any())


def _components(flow: Flow, *, bundled: bool = True) -> Integers:
    """Label -> number of its channel; without ``bundled`` the places of a channel stay apart."""
    if not flow.labels:
        return np.zeros(0, dtype=np.int64)
    pairs = list(flow.pairs)
    if bundled:
        pairs += [(rows[:, :1].expand_as(rows).reshape(-1), rows.reshape(-1)) for rows in flow.bundles]
    none = torch.zeros(0, dtype=torch.int64)
    a, b = (torch.cat([p[i] for p in pairs] or [none]).numpy() for i in range(2))
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(flow.labels, flow.labels))
    return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def _places(flow: Flow) -> torch.Tensor:
    """Label -> a hash of what tells it from the other places of its channel.

    Labels that met position by position share the columns in which they were bundled, and what tells those apart that they are bundled
    with (one round of colour refinement); each has what it met for itself. A place that was made of another (a copy by ``repeat`` of one
    of the outputs that a grouped convolution bundles) takes over what tells that apart.
    """
    tags = torch.zeros(flow.labels, dtype=torch.int64)
    if flow.bundles:
        place = torch.from_numpy(_components(flow, bundled=False))
        hashes = torch.zeros(int(place.max()) + 1, dtype=torch.int64)
        for index, rows in enumerate(flow.bundles):
            column = mix(index, torch.arange(rows.shape[1])).expand_as(rows)
            hashes.index_add_(0, place[rows.reshape(-1)], column.reshape(-1))
        refined = hashes.clone()
        for index, rows in enumerate(flow.bundles):
            column = torch.arange(rows.shape[1])
            together = mix(hashes[place[rows]], column).sum(1, keepdim=True)
            refined.index_add_(0, place[rows.reshape(-1)], mix(together, index, column).reshape(-1))
        hashes = refined
        for rows in flow.spreads:  # in the order of the calls: places of places come after those
            inherited = mix(hashes[place[rows[:, :1].reshape(-1)]], 2)[:, None].expand(-1, rows.shape[1] - 1)
            hashes.index_add_(0, place[rows[:, 1:].reshape(-1)], inherited.reshape(-1))
        tags = hashes[place]
    for labels, paths in flow.meetings:
        met = labels != FIXED
        tags.index_add_(0, labels[met], mix(paths[met], 1))
    return tags


@dataclass(frozen=True)
class _Slots:
    """All places at which tensor axes hold channels, as parallel arrays, sorted by channel, then axis, then path.

    ``starts`` has one entry more than there are channels: the places of channel ``i`` are ``starts[i]:starts[i + 1]``.
    """

    axes: list[tuple[str, int, Role]]
    unit: Integers
    axis: Integers
    position: Integers
    path: Integers
    starts: Integers


def _slots(flow: Flow, unit: Integers) -> _Slots:
    count = int(unit.max()) + 1 if len(unit) else 0
    names = [(tensor, dim, axis.role) for (tensor, dim), axis in flow.axes.items()]
    none = torch.zeros(0, dtype=torch.int64)
    label = torch.cat([none, *(axis.label for axis in flow.axes.values())])
    path = torch.cat([none, *(axis.path.expand_as(axis.label) for axis in flow.axes.values())])
    sizes = [len(axis.label) for axis in flow.axes.values()]
    call = torch.from_numpy(np.repeat(np.asarray([axis.call for axis in flow.axes.values()], dtype=np.int64), sizes))
    path = torch.where(call < 0, path, mix(path, call))
    number = np.repeat(np.arange(len(names)), sizes)
    position = np.arange(len(label)) - np.repeat(np.cumsum([0, *sizes])[:-1], sizes)
    held = label != FIXED
    label, number, position = label[held], number[held.numpy()], position[held.numpy()]
    places = mix(path[held], _places(flow)[label]).numpy()
    units = unit[label.numpy()]
    key = units * len(names) + number
    order = np.argsort(key, kind="stable")
    if (np.diff(key[order]) == 0).any():  # a channel with several places on an axis
        order = np.lexsort((places, key))
    starts = np.searchsorted(units[order], np.arange(count + 1))
    return _Slots(names, units[order], number[order], position[order], places[order], starts)


def _signatures(slots: _Slots) -> Integers:
    """A 128-bit hash per channel of the multiset of its (axis, path); zeros for one without places."""
    axis, path = torch.from_numpy(slots.axis), torch.from_numpy(slots.path)
    result = np.zeros((len(slots.starts) - 1, 2), dtype=np.int64)
    held = np.flatnonzero(np.diff(slots.starts))
    for column in range(2 if len(held) else 0):
        result[held, column] = np.add.reduceat(mix(axis, path, column + 1).numpy(), slots.starts[held])
    return result


class _Reasons:
    """Why channels must stay. The first reason stands.

    Attributes:
        number: channel number -> number of its reason, or -1.
    """

    def __init__(self, count: int) -> None:
        self.number = np.full(count, -1)
        self.texts: list[str] = []

    def add(self, units: Integers, text: str) -> None:
        self.number[units[self.number[units] < 0]] = len(self.texts)
        self.texts.append(text)


def _frozen_units(
    flow: Flow,
    unit: Integers,
    slots: _Slots,
    names: tuple[str, ...],
    stuck: Iterable[Stuck],
    movable: frozenset[fx.Node],
) -> _Reasons:
    reasons = _Reasons(len(slots.starts) - 1)
    modules = [(axis.label, tensor.rpartition(".")[0]) for (tensor, _), axis in flow.axes.items()]
    asked = [
        (label[label != FIXED], "was frozen by request", module)
        for label, module in modules
        if any(matches(module, name) for name in names)
    ]
    for labels, reason, module in (*flow.frozen, *asked, *(_labels_of(entry, flow) for entry in stuck)):
        reasons.add(unit[labels.numpy()], f"{reason} (at '{module}')" if module else reason)
    twice = (np.diff(slots.unit) == 0) & (np.diff(slots.axis) == 0) & (np.diff(slots.path) == 0)
    reasons.add(slots.unit[1:][twice], "meets itself at another position, so that its places cannot be told apart")
    for node, value in flow.values.items():
        if node not in movable and len(units := spread(value, unit)):
            reasons.add(units, "is spread over several axes of a tensor, or alone in it")
    return reasons


def _labels_of(entry: Stuck, flow: Flow) -> tuple[torch.Tensor, str, str]:
    labels = [flow.axes[tensor, dim].label[position] for tensor, dim, position in entry.places]
    return torch.stack(labels), entry.reason, entry.module


def matches(module: str, pattern: str) -> bool:
    """Whether ``pattern`` names this module, or one that it lies in."""
    from fnmatch import fnmatchcase

    return fnmatchcase(module, pattern) or module.startswith(pattern + ".")


def spread(value: object, unit: Integers) -> Integers:
    """Channels of a value that cannot go by shrinking one of its axes: they depend on several axes at once, or stand alone."""
    if isinstance(value, (list, tuple)):
        parts = [spread(v, unit) for v in value]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if not isinstance(value, Channels) or len(value.varying) == 1 or not len(unit):
        return np.zeros(0, dtype=np.int64)
    if not value.label.numel():
        return np.zeros(0, dtype=np.int64)
    label = value.label.numpy()
    units = np.where(label == FIXED, -1, unit[label])
    varying = [d for d in range(units.ndim) if (units != np.take(units, [0], d)).any()]
    return np.unique(units[units >= 0]) if len(varying) != 1 else np.zeros(0, dtype=np.int64)


def _first_labels(unit: Integers, count: int) -> Integers:
    first = np.empty(count, dtype=np.int64)
    first[unit[::-1]] = np.arange(len(unit))[::-1]  # of several assignments the last one stands
    return first


def _group(slots: _Slots, units: Integers, name: str, balance: int | None) -> ChannelGroup:
    per_unit = slots.starts[units[0] + 1] - slots.starts[units[0]]
    rows = slots.starts[units][:, None] + np.arange(per_unit)
    axes, positions = slots.axis[rows[0]], slots.position[rows]
    starts = np.flatnonzero(np.diff(axes, prepend=-1))
    members = []
    for start, stop in pairwise([*starts.tolist(), len(axes)]):
        tensor, dim, role = slots.axes[axes[start]]
        members.append(Member(tensor, dim, role, positions[:, start:stop]))
    return ChannelGroup(name, len(units), tuple(members), balance)


def _summary(
    flow: Flow, reasons: _Reasons, held: Integers, order: Integers, maker: Integers
) -> tuple[FrozenChannels, ...]:
    """How many channels stay, by module and reason: those that tensors hold, in the order in which they are made, then all others."""
    units = held[reasons.number[held] >= 0]
    units = units[np.argsort(order[units])]
    pairs = np.stack([maker[units], reasons.number[units]], 1)
    counted: Counter[tuple[str, str]] = Counter()
    for alike in equal_rows(pairs, np.arange(len(pairs))):
        made, why = pairs[alike[0]]
        counted[flow.makers[made][1], reasons.texts[why]] += len(alike)
    counted.update(flow.unheld)
    return tuple(FrozenChannels(n, module, reason) for (module, reason), n in counted.items())
