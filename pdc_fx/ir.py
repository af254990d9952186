"""What the passes hand to each other: frozen records without tensors that serialise to JSON.

    module -> Recording (pdc_fx.trace) -> ChannelGroups -> ClusterPlan -> tied module -> compact module -> Certificate

A *channel* here is one unit of the network that lives or goes as a whole: the output channel of a convolution with its
batch-norm entries, the same channel of everything it is added to, its slots behind a concat or a flatten, and every input
slice that reads it. A :class:`ChannelGroup` holds channels that may replace each other: each has the same members at the
same places, so any partition of them into clusters can be merged exactly once the filters of each cluster are equal.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import gcd, prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from pdc_fx.errors import ArtifactError

if TYPE_CHECKING:
    import networkx as nx

T = TypeVar("T")
Integers = npt.NDArray[np.int64]
LONGEST_AXIS = 2**24
"""Positions on one axis of a tensor: a hundred times those of the largest network we know of."""
Role = Literal["producer", "channelwise", "consumer"]


def encode_integers(values: Iterable[int]) -> str:
    """Write integers as runs, so that a plan for a large network stays a small file.

    >>> encode_integers([0, 1, 2, 3, 9, 10, 4])
    '0-3,9-10,4'
    """
    runs: list[str] = []
    array = np.asarray(list(values), dtype=np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    for run in np.split(array, breaks):
        if len(run):
            runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ",".join(runs)


def decode_integers(text: str) -> Integers:
    """Read what :func:`encode_integers` wrote.

    Raises:
        ValueError: it is something else, or more than :data:`LONGEST_AXIS` integers.

    >>> decode_integers("0-3,9-10,4").tolist()
    [0, 1, 2, 3, 9, 10, 4]
    """
    parts: list[Integers] = []
    total = 0
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        count = int(last or first) + 1 - int(first)
        if count < 1:
            raise ValueError(f"a run that goes backwards: {run[:40]}")
        total += count
        if total > LONGEST_AXIS:  # before any memory is taken: a few digits may ask for all there is
            raise ValueError(f"more than {LONGEST_AXIS} integers in one list")
        parts.append(np.arange(int(first), int(last or first) + 1, dtype=np.int64))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Member:
    """One axis of one tensor of the model, as far as it belongs to a group.

    Attributes:
        tensor: name of the parameter or buffer in the state dict.
        dim: the axis of that tensor.
        role: ``producer`` (makes the channel) and ``channelwise`` (rides on it: batch norm, bias, depthwise filter) must
            be equal inside a cluster; ``consumer`` (reads it) is summed.
        positions: shape ``(channels, k)``; row ``i`` lists the places of channel ``i`` on the axis. After a flatten of
            ``H x W`` maps a channel owns ``k = H W`` places, and the j-th place of one stands for the j-th of another.
    """

    tensor: str
    dim: int
    role: Role
    positions: Integers

    def to_dict(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "dim": self.dim,
            "role": self.role,
            "per_channel": int(self.positions.shape[1]),
            "positions": encode_integers(self.positions.reshape(-1).tolist()),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Member:
        positions = decode_integers(data["positions"]).reshape(-1, operator.index(data["per_channel"]))
        return Member(data["tensor"], operator.index(data["dim"]), data["role"], positions)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that may replace each other.

    Attributes:
        name: the module that makes them.
        balance: where a normalisation averages over them, the number they share with all groups that it averages over: the
            clusters of all of these have one and the same size. None where clusters may be of any size.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    balance: int | None = None

    @property
    def producers(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == "producer")

    @property
    def tied(self) -> tuple[Member, ...]:
        """The members that must agree inside a cluster."""
        return tuple(m for m in self.members if m.role != "consumer")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "channels": self.channels,
            "members": [m.to_dict() for m in self.members],
            "balance": self.balance,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ChannelGroup:
        members = tuple(Member.from_dict(m) for m in data["members"])
        balance = data["balance"]
        return ChannelGroup(
            data["name"],
            operator.index(data["channels"]),
            members,
            None if balance is None else operator.index(balance),
        )


@dataclass(frozen=True)
class FrozenChannels:
    """Channels that stay as they are: how many, the module that makes them, and why."""

    channels: int
    module: str
    reason: str


@dataclass(frozen=True)
class MacSite:
    """One use of a weight. Its multiply-accumulates are ``uses`` times the elements of the weight, for any width of it.

    ``uses`` is batch size times output positions for a convolution (grouped and depthwise too), rows for a linear layer.
    """

    tensor: str
    uses: int
    module: str


@dataclass(frozen=True)
class ChannelGroups:
    """The result of the dependency analysis.

    Attributes:
        groups: the groups that have at least two channels.
        frozen: all other channels, with reasons.
        unreached: modules that hold parameters which the example inputs never reached.
        sites: where multiply-accumulates happen.
        fixed_macs: multiply-accumulates that no merge changes (products of two activations).
        shapes: the shape of every parameter and buffer.
        parameters: names of those that are parameters.
        inputs: shape and dtype of the example inputs.
        frozen_names: patterns of modules that were frozen by request.

    >>> import torch
    >>> from torch import nn
    >>> from pdc_fx.pipeline import analyze
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> groups = analyze(net, torch.zeros(1, 3, 8, 8))
    >>> groups.channels, groups.mergeable_channels, groups.macs(), groups.macs({0: 4})
    (12, 8, 12384, 6192)
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    unreached: tuple[str, ...]
    sites: tuple[MacSite, ...]
    fixed_macs: int
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()
    frozen_names: tuple[str, ...] = ()

    @property
    def mergeable_channels(self) -> int:
        """Channels in groups: those that may be merged."""
        return sum(g.channels for g in self.groups)

    @property
    def channels(self) -> int:
        """All channels, mergeable or frozen."""
        return self.mergeable_channels + sum(f.channels for f in self.frozen)

    @cached_property
    def balanced(self) -> dict[int, tuple[int, ...]]:
        """Balance number -> the groups that share it, whose clusters must all be of one size."""
        table: dict[int, tuple[int, ...]] = {}
        for index, group in enumerate(self.groups):
            if group.balance is not None:
                table[group.balance] = (*table.get(group.balance, ()), index)
        return table

    def cluster_sizes(self, number: int) -> tuple[int, ...]:
        """The cluster sizes that the groups of a balance number can have, from 1 on: the common divisors of their channels."""
        common = gcd(*(self.groups[i].channels for i in self.balanced[number]))
        return tuple(size for size in range(1, common + 1) if common % size == 0)

    @cached_property
    def _removed_per_channel(self) -> dict[str, list[tuple[int, int, int]]]:
        """tensor -> (dim, group, positions that go when the group loses one channel)."""
        table: dict[str, list[tuple[int, int, int]]] = {}
        for index, group in enumerate(self.groups):
            for member in group.members:
                table.setdefault(member.tensor, []).append((member.dim, index, member.positions.shape[1]))
        return table

    def compact_shape(self, tensor: str, widths: Mapping[int, int] | None) -> tuple[int, ...]:
        """The shape of ``tensor`` when group ``g`` keeps ``widths[g]`` channels (all of them where it is not named)."""
        shape = list(self.shapes[tensor])
        for dim, index, per_channel in self._removed_per_channel.get(tensor, ()):
            kept = self.groups[index].channels if widths is None else widths.get(index, self.groups[index].channels)
            shape[dim] -= (self.groups[index].channels - kept) * per_channel
        return tuple(shape)

    def macs(self, widths: Mapping[int, int] | None = None) -> int:
        """Multiply-accumulates of one forward pass on the example inputs; one fused multiply-add counts once."""
        total = self.fixed_macs
        for site in self.sites:
            total += site.uses * prod(self.compact_shape(site.tensor, widths))
        return total

    def params(self, widths: Mapping[int, int] | None = None) -> int:
        """Number of parameters; one that is shared counts once."""
        return sum(prod(self.compact_shape(name, widths)) for name in self.parameters)

    def mergeable_macs(self) -> int:
        """Multiply-accumulates of the layers of which at least one axis can shrink."""
        touched = {m.tensor for g in self.groups for m in g.members}
        return sum(s.uses * prod(self.shapes[s.tensor]) for s in self.sites if s.tensor in touched)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "groups": [g.to_dict() for g in self.groups],
            "frozen": [asdict(f) for f in self.frozen],
            "unreached": list(self.unreached),
            "sites": [asdict(s) for s in self.sites],
            "fixed_macs": self.fixed_macs,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "parameters": list(self.parameters),
            "inputs": [[list(shape), dtype] for shape, dtype in self.inputs],
            "frozen_names": list(self.frozen_names),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ChannelGroups:
        """From such values."""
        found = ChannelGroups(
            groups=tuple(ChannelGroup.from_dict(g) for g in data["groups"]),
            frozen=tuple(FrozenChannels(**f) for f in data["frozen"]),
            unreached=tuple(data["unreached"]),
            sites=tuple(MacSite(s["tensor"], operator.index(s["uses"]), s["module"]) for s in data["sites"]),
            fixed_macs=operator.index(data["fixed_macs"]),
            shapes={name: tuple(map(operator.index, shape)) for name, shape in data["shapes"].items()},
            parameters=tuple(data["parameters"]),
            inputs=tuple((tuple(map(operator.index, shape)), dtype) for shape, dtype in data["inputs"]),
            frozen_names=tuple(data["frozen_names"]),
        )
        found._require_sense()
        return found

    def _require_sense(self) -> None:
        """Raise :class:`ArtifactError` where something is said of what is not there: a tensor, an axis, a place on it, a role."""
        members = [(group, member) for group in self.groups for member in group.members]
        for name in (*(m.tensor for _, m in members), *(site.tensor for site in self.sites), *self.parameters):
            if name not in self.shapes:
                raise ArtifactError("channel groups speak of a tensor whose shape is not listed", where=repr(name)[:80])
        for group, member in members:
            shape, places = self.shapes[member.tensor], member.positions
            where = f"axis {member.dim} of '{member.tensor}'"
            if not 0 <= member.dim < len(shape):
                raise ArtifactError("channel groups speak of an axis that is not there", where=where)
            if len(places) != group.channels or places.max(initial=-1) >= shape[member.dim]:
                raise ArtifactError("channel groups speak of channels that are not there", where=where)
            if member.role not in get_args(Role):
                raise ArtifactError(f"channel groups speak of an unknown role {member.role!r:.40}", where=where)

    def to_json(self) -> str:
        """All of it as JSON, for :meth:`from_json`."""
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_json(text: str) -> ChannelGroups:
        """Read what :meth:`to_json` wrote; :class:`ArtifactError` for what is no JSON."""
        return _parse(text, "channel groups", ChannelGroups.from_dict)

    def digest(self) -> str:
        """SHA-256 of the structure: two models with the same digest accept the same plan."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hashed = hashlib.sha256()
        for group in self.groups:
            hashed.update(repr((group.name, group.channels, group.balance, len(group.members))).encode())
            for member in group.members:
                hashed.update(repr((member.tensor, member.dim, member.role, member.positions.shape)).encode())
                hashed.update(member.positions.astype("<i8").tobytes())  # the same on every machine
        return hashed.hexdigest()

    def to_networkx(self) -> nx.Graph:
        """A bipartite graph: one node per group and per tensor axis, one edge per membership (attribute ``role``)."""
        import networkx as nx

        graph = nx.Graph()
        for index, group in enumerate(self.groups):
            graph.add_node(f"group:{index}", kind="group", name=group.name, channels=group.channels)
            for member in group.members:
                axis = f"{member.tensor}[{member.dim}]"
                graph.add_node(axis, kind="axis", size=self.shapes[member.tensor][member.dim])
                graph.add_edge(f"group:{index}", axis, role=member.role)
        return graph


@dataclass(frozen=True)
class ClusterPlan:
    """Which channels of each group become one.

    Attributes:
        groups: the groups the plan speaks of.
        clusters: for each group one array of shape ``(channels,)``: the cluster number of each channel, numbered by first
            appearance, so that the first channel of a cluster stands for it.
        allocation: how the budget was spread over the groups.
        options: what was asked for, and what is known of it: plain values.

    >>> import torch
    >>> from torch import nn
    >>> from pdc_fx.pipeline import analyze
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> plan = ClusterPlan(analyze(net, torch.zeros(1, 3, 8, 8)), (np.array([0, 0, 1, 1]),))
    >>> plan.widths, plan.flops_reduction, ClusterPlan.from_json(plan.to_json()).widths
    ({0: 2}, 0.5, {0: 2})
    >>> [array.tolist() for array in plan.representatives]
    [[0, 0, 2, 2]]
    """

    groups: ChannelGroups
    clusters: tuple[Integers, ...]
    allocation: str = "given"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.clusters) != len(self.groups.groups):
            raise ArtifactError(f"a plan for {len(self.clusters)} groups does not fit {len(self.groups.groups)} groups")
        for group, labels in zip(self.groups.groups, self.clusters, strict=True):
            if labels.shape != (group.channels,):
                raise ArtifactError("cluster numbers do not fit the group", where=f"{group.name}: {labels.shape}")
            if not np.array_equal(labels, first_appearance(labels)):
                raise ArtifactError("clusters are not numbered by first appearance", where=group.name)
        for number, members in self.groups.balanced.items():
            sizes = {int(size) for i in members for size in np.bincount(self.clusters[i])}
            if len(sizes) > 1:
                raise ArtifactError(
                    f"clusters of channels that are averaged together have different sizes: {sorted(sizes)}",
                    where=", ".join(self.groups.groups[i].name for i in members[:3]),
                    hint=f"the groups with balance {number} need clusters of one size",
                )

    @property
    def widths(self) -> dict[int, int]:
        """Group number -> channels that remain."""
        return {i: int(labels.max()) + 1 for i, labels in enumerate(self.clusters)}

    @cached_property
    def representatives(self) -> tuple[Integers, ...]:
        """For each group one array of shape ``(channels,)``: the channel that stands for each, the first of its cluster."""
        return tuple(np.unique(labels, return_index=True)[1][labels] for labels in self.clusters)

    @property
    def samples(self) -> int:
        """How many samples the example inputs hold, of which all multiply-accumulates here are, where the first axis is that of a batch."""
        shape = self.groups.inputs[0][0] if self.groups.inputs else ()
        return max(shape[0], 1) if len(shape) > 1 else 1

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates of one forward pass on the example inputs."""
        return self.groups.macs()

    @property
    def macs_after(self) -> int:
        """The same of the network that the plan leads to."""
        return self.groups.macs(self.widths)

    @property
    def macs_of_one(self) -> tuple[int, int]:
        """Both for one sample."""
        return self.macs_before // self.samples, self.macs_after // self.samples

    @property
    def params_before(self) -> int:
        """Number of parameters."""
        return self.groups.params()

    @property
    def params_after(self) -> int:
        """The same of the network that the plan leads to."""
        return self.groups.params(self.widths)

    @property
    def flops_reduction(self) -> float:
        """Share of the multiply-accumulates that goes, 0 to 1."""
        return 1.0 - self.macs_after / max(self.macs_before, 1)

    def with_clusters(self, clusters: Iterable[Integers]) -> ClusterPlan:
        """The same plan with other clusters."""
        return ClusterPlan(self.groups, tuple(clusters), self.allocation, self.options)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "allocation": self.allocation,
            "options": dict(self.options),
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "clusters": [encode_integers(c.tolist()) for c in self.clusters],
            "channel_groups": self.groups.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ClusterPlan:
        """From such values."""
        groups = ChannelGroups.from_dict(data["channel_groups"])
        clusters = tuple(decode_integers(text) for text in data["clusters"])
        return ClusterPlan(groups, clusters, data["allocation"], data["options"])

    def to_json(self) -> str:
        """All of it as JSON, for :meth:`from_json`; its channel groups included."""
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_json(text: str) -> ClusterPlan:
        """Read what :meth:`to_json` wrote; :class:`ArtifactError` for what is no JSON or no plan."""
        return _parse(text, "cluster plan", ClusterPlan.from_dict)


def first_appearance(labels: Integers) -> Integers:
    """Renumber clusters by the order in which they first appear.

    >>> first_appearance(np.array([7, 2, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].astype(np.int64)


@dataclass(frozen=True)
class Certificate:
    """What a dry run has measured; the keys are those of ``pdc-fx check --json``.

    Attributes:
        passed: whether tied and compact network are one function, to within ``tolerance``.
        max_abs_error: the largest difference between two outputs.
        max_rel_error: that over the largest magnitude of the output, the worst over all outputs; compared with ``tolerance``.
        dtype: what it was measured in, ``float64`` or ``float32``.
        macs_before, macs_after: multiply-accumulates of one forward pass; one fused multiply-add counts once.
        channels, mergeable_channels: all, and those that may be merged; ``frozen`` are the others, with reasons.
        unreached: modules that the example inputs never reached.
        seconds: phase -> time.
        result_type: class of the compact network.
        first_difference: the first output that differs, or None.
        mergeable_macs: multiply-accumulates of the layers that can shrink.

    >>> import torch
    >>> from torch import nn
    >>> from pdc_fx.passes.check import check
    >>> found = check(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 8, 8))
    >>> found.passed, found.macs_before, found.macs_after
    (True, 12384, 6192)
    """

    model: str
    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    dtype: str
    seed: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    channels: int
    mergeable_channels: int
    groups: int
    frozen: tuple[FrozenChannels, ...]
    unreached: tuple[str, ...]
    seconds: Mapping[str, float]
    result_type: str
    first_difference: str | None = None
    mergeable_macs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """What ``pdc-fx check --json`` prints."""
        return json.dumps(self.to_dict(), indent=1)


def _parse(text: str, what: str, of: Callable[[Any], T]) -> T:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"this is not the JSON of a {what}", where=str(error)) from error
    try:
        return of(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"this is a malformed {what}: {type(error).__name__} {error}") from error
