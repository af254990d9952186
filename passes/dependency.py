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
from math import gcd

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx

from pdc_fx.ir import ChannelGroup, ChannelGroups, FrozenChannels, Integers, Member, Role
from pdc_fx.rules import Channels, Flow, Site, Weight, apply_rule
from pdc_fx.rules.base import FIXED, mix
from pdc_fx.trace import Recording


@dataclass(frozen=True)
class Solution:
    """Groups, and what is needed to tell for any label which channel of which group it is."""

    groups: ChannelGroups
    flow: Flow
    unit: Integers  # label -> channel number
    group: Integers  # channel number -> group number, or -1
    row: Integers  # channel number -> its row in the group, or -1

    def frozen_producers(self) -> tuple[str, ...]:
        """The tensors that make channels of which none may go."""
        found = []
        for (tensor, _), axis in self.flow.axes.items():
            label = axis.label[axis.label != FIXED].numpy()
            if axis.role == "producer" and len(label) and (self.group[self.unit[label]] < 0).all():
                found.append(tensor)
        return tuple(found)


def flow_of(recording: Recording) -> Flow:
    """Run every rule over the recording."""
    flow = Flow(recording)
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
            flow.values[node] = apply_rule(site)
    for (tensor, _), axis in list(flow.axes.items()):
        if (reason := recording.overlapping.get(tensor)) is not None:
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
    signature = _signatures(slots, count)
    held = np.zeros(count, dtype=bool)
    held[slots.unit] = True
    order = _first_labels(unit, count)
    maker = _makers(flow)

    def alike() -> list[list[int]]:
        """The channels that need not stay, by signature, in the order in which they are made."""
        free = held.copy()
        free[list(reasons)] = False
        members = np.flatnonzero(free)
        by_signature: dict[bytes, list[int]] = {}
        for index in members[np.argsort(order[members], kind="stable")]:
            by_signature.setdefault(signature[index].tobytes(), []).append(int(index))
        for units in list(by_signature.values()):
            if len(units) == 1:
                reasons[units[0]] = "no other channel is used in the same way"
        return [units for units in by_signature.values() if len(units) > 1]

    classes = alike()
    balance = _balance(flow, unit, count)
    if _freeze_unbalanced(flow, unit, balance, classes, reasons):
        classes = alike()
    group_of, row_of = np.full(count, -1), np.full(count, -1)
    groups: list[ChannelGroup] = []
    slots_by_unit = slots.sorted_by_unit(count)
    for units in classes:
        row_of[units], group_of[units] = np.arange(len(units)), len(groups)
        number = None if balance is None or balance[units[0]] < 0 else int(balance[units[0]])
        groups.append(_group(flow, slots_by_unit, np.asarray(units), maker(order[units[0]]), number))
    recording = flow.recording
    result = ChannelGroups(
        groups=tuple(groups),
        frozen=_summary(reasons, held, order, maker),
        unreached=recording.unreached,
        sites=tuple(flow.sites),
        fixed_macs=flow.fixed_macs,
        shapes=recording.shapes,
        parameters=recording.parameters,
        inputs=recording.inputs,
        frozen_names=frozen_names,
    )
    return Solution(result, flow, unit, group_of, row_of)


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
    flow: Flow, unit: Integers, balance: Integers | None, classes: list[list[int]], reasons: dict[int, str]
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
    changed = False
    for index in np.flatnonzero(np.isin(balance, list(why))):
        number = int(balance[index])
        changed |= bool(free[index])
        reasons.setdefault(int(index), f"{why[number]} (at '{where.get(number, '')}')")
    return changed


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
    """Label -> a hash of the columns in which its place was bundled; labels that met position by position share it."""
    place = torch.from_numpy(_components(flow, bundled=False))
    hashes = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.int64)
    for index, rows in enumerate(flow.bundles):
        column = mix(index, torch.arange(rows.shape[1])).expand_as(rows)
        hashes.index_add_(0, place[rows.reshape(-1)], column.reshape(-1))
    return hashes[place]


@dataclass(frozen=True)
class _Slots:
    """All places at which tensor axes hold channels, as parallel arrays."""

    axes: list[tuple[str, int, Role]]
    unit: Integers
    axis: Integers
    position: Integers
    path: Integers

    def sorted_by_unit(self, count: int) -> tuple[_Slots, Integers]:
        """Sorted by channel, then axis, then path; and where each channel starts."""
        order = np.lexsort((self.path, self.axis, self.unit))
        ordered = _Slots(self.axes, self.unit[order], self.axis[order], self.position[order], self.path[order])
        return ordered, np.searchsorted(ordered.unit, np.arange(count + 1))


def _slots(flow: Flow, unit: Integers) -> _Slots:
    tags = _places(flow)
    names: list[tuple[str, int, Role]] = []
    columns: list[tuple[torch.Tensor, ...]] = []
    for (tensor, dim), axis in flow.axes.items():
        at = torch.nonzero(axis.label != FIXED).reshape(-1)
        if len(at):
            label = axis.label[at]
            columns.append(
                (label, torch.full_like(label, len(names)), at, mix(axis.path.expand_as(axis.label)[at], tags[label]))
            )
            names.append((tensor, dim, axis.role))
    none = torch.zeros(0, dtype=torch.int64)
    at_label, number, position, path = (torch.cat([c[i] for c in columns] or [none]).numpy() for i in range(4))
    return _Slots(names, unit[at_label], number, position, path)


def _signatures(slots: _Slots, count: int) -> Integers:
    """A 128-bit hash per channel of the multiset of its (axis, path)."""
    axis, path = torch.from_numpy(slots.axis), torch.from_numpy(slots.path)
    total = torch.zeros(count, 2, dtype=torch.int64)
    for column in range(2):
        total[:, column].index_add_(0, torch.from_numpy(slots.unit), mix(axis, path, column + 1))
    result: Integers = total.numpy()
    return result


def _frozen_units(
    flow: Flow,
    unit: Integers,
    slots: _Slots,
    names: tuple[str, ...],
    stuck: Iterable[Stuck],
    movable: frozenset[fx.Node],
) -> dict[int, str]:
    """Channel number -> why it must stay. The first reason stands."""
    reasons: dict[int, str] = {}
    for tensor, dim in flow.axes:
        module = tensor.rpartition(".")[0]
        if any(_matches(module, name) for name in names):
            flow.freeze(flow.axes[tensor, dim].label, "was frozen by request", module)
    for labels, reason, module in (*flow.frozen, *(_labels_of(entry, flow) for entry in stuck)):
        for index in np.unique(unit[labels.numpy()]):
            reasons.setdefault(int(index), f"{reason} (at '{module}')" if module else reason)
    ordered, _ = slots.sorted_by_unit(0)
    twice = (np.diff(ordered.unit) == 0) & (np.diff(ordered.axis) == 0) & (np.diff(ordered.path) == 0)
    for index in np.unique(ordered.unit[1:][twice]):
        reasons.setdefault(int(index), "meets itself at another position, so that its places cannot be told apart")
    for node, value in flow.values.items():
        for index in () if node in movable else spread(value, unit):
            reasons.setdefault(int(index), "is spread over several axes of a tensor, or alone in it")
    return reasons


def _labels_of(entry: Stuck, flow: Flow) -> tuple[torch.Tensor, str, str]:
    labels = [flow.axes[tensor, dim].label[position] for tensor, dim, position in entry.places]
    return torch.stack(labels), entry.reason, entry.module


def _matches(module: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(module, pattern) or module.startswith(pattern + ".")


def spread(value: object, unit: Integers) -> Integers:
    """Channels of a value that cannot go by shrinking one of its axes: they depend on several axes at once, or stand alone."""
    if isinstance(value, (list, tuple)):
        parts = [spread(v, unit) for v in value]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if not isinstance(value, Channels) or len(value.varying) == 1 or not len(unit):
        return np.zeros(0, dtype=np.int64)
    label = value.label.numpy()
    units = np.where(label == FIXED, -1, unit[label])
    varying = [d for d in range(units.ndim) if (units != np.take(units, [0], d)).any()]
    return np.unique(units[units >= 0]) if len(varying) != 1 else np.zeros(0, dtype=np.int64)


def _first_labels(unit: Integers, count: int) -> Integers:
    first = np.full(count, len(unit))
    np.minimum.at(first, unit, np.arange(len(unit)))
    return first


def _makers(flow: Flow) -> Callable[[int], str]:
    """A function from a label to the module that made it."""
    starts = np.asarray([start for start, *_ in flow.makers])

    def maker(label: int) -> str:
        return flow.makers[int(np.searchsorted(starts, label, side="right")) - 1][1]

    return maker


def _group(
    flow: Flow, slots_by_unit: tuple[_Slots, Integers], units: Integers, name: str, balance: int | None
) -> ChannelGroup:
    slots, starts = slots_by_unit
    per_unit = starts[units[0] + 1] - starts[units[0]]
    rows = starts[units][:, None] + np.arange(per_unit)
    axes, positions = slots.axis[rows[0]], slots.position[rows]
    members = []
    for axis in np.unique(axes):
        tensor, dim, role = slots.axes[axis]
        members.append(Member(tensor, dim, role, positions[:, axes == axis]))
    return ChannelGroup(name, len(units), tuple(members), balance)


def _summary(
    reasons: dict[int, str], held: npt.NDArray[np.bool_], order: Integers, maker: Callable[[int], str]
) -> tuple[FrozenChannels, ...]:
    counted: Counter[tuple[str, str]] = Counter()
    for index in sorted(reasons, key=lambda i: order[i]):
        if held[index]:
            counted[maker(order[index]), reasons[index]] += 1
    return tuple(FrozenChannels(n, module, reason) for (module, reason), n in counted.items())
