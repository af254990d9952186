"""The dependency analysis as a graph that can be looked at: what each operator makes, carries and reads, as plain data.

A node is one recorded call (or an input, or the outputs); an edge says that a node's value goes into another node. Parameters
and buffers are no nodes: they belong to the calls that read them. For every value the graph knows how many of its channels
belong to which group and how many must stay for which reason, so that pages and files need nothing of the analysis itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from pdc_fx.ir import ChannelGroups, Integers
from pdc_fx.passes.dependency import Solution
from pdc_fx.rules import Channels
from pdc_fx.rules.channels import FIXED
from pdc_fx.trace import function_name

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Operator:
    """One recorded call.

    Attributes:
        kind: ``call``, ``input`` or ``output``.
        function: the torch function with its full name, e.g. ``torch.conv2d``; empty for inputs and outputs.
        name: the last part of it, or ``input``, ``output``.
        module: path of the innermost module that was running.
        source: file and line that called it.
        shape: of its result; None where that is not one tensor.
        tensors: parameters and buffers that it reads.
        groups: group number -> channels of it that the result holds.
        frozen: number of a reason -> channels of the result that must stay for it.
        macs: its multiply-accumulates on the example inputs.
    """

    kind: str
    function: str
    name: str
    module: str = ""
    source: str = ""
    shape: tuple[int, ...] | None = None
    tensors: tuple[str, ...] = ()
    groups: Mapping[int, int] = field(default_factory=dict)
    frozen: Mapping[int, int] = field(default_factory=dict)
    macs: int = 0

    @property
    def main_group(self) -> int | None:
        """The group of most of the channels that can go; None where all must stay, or where there are none."""
        return max(self.groups, key=lambda g: self.groups[g], default=None)


@dataclass(frozen=True)
class Layer:
    """A module that holds weights: its cost on the example inputs, and whether its width can change.

    Attributes:
        groups: the groups that its tensors are members of.
        at: the first node that reads one of its tensors; None where none is reached.
    """

    module: str
    macs: int
    params: int
    groups: tuple[int, ...]
    at: int | None


@dataclass(frozen=True)
class ModelGraph:
    """A model as operators and channel groups.

    Attributes:
        nodes: in the order in which they ran.
        edges: pairs of node numbers, each pair once, sorted.
        reasons: why channels must stay; ``Operator.frozen`` counts by their numbers.

    >>> import torch
    >>> from pdc_fx.pipeline import inspect
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> graph = inspect(net, torch.zeros(1, 3, 8, 8))
    >>> [(node.name, dict(node.groups)) for node in graph.nodes]
    [('input', {}), ('conv2d', {0: 8}), ('relu', {0: 8}), ('conv2d', {}), ('output', {})]
    >>> graph.edges, graph.reasons
    (((0, 1), (1, 2), (2, 3), (3, 4)), ('is an output of the model',))
    """

    groups: ChannelGroups
    nodes: tuple[Operator, ...]
    edges: tuple[tuple[int, int], ...]
    reasons: tuple[str, ...]

    @cached_property
    def readers(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> the nodes that read it."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for tensor in node.tensors:
                found[tensor].append(index)
        return {tensor: tuple(nodes) for tensor, nodes in found.items()}

    @cached_property
    def joins(self) -> dict[int, tuple[int, ...]]:
        """Group -> the nodes that bring several values with its channels together: why they are coupled.

        A node joins a group where it takes it from two inputs or more and its result holds no more channels of it than one
        of them does (a concat, in contrast, holds all).
        """
        sources: dict[int, list[int]] = defaultdict(list)
        for start, stop in self.edges:
            sources[stop].append(start)
        found: dict[int, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for group, count in node.groups.items():
                held = [self.nodes[s].groups[group] for s in sources[index] if group in self.nodes[s].groups]
                if len(held) > 1 and count < sum(held):
                    found[group].append(index)
        return {group: tuple(nodes) for group, nodes in found.items()}

    @cached_property
    def streams(self) -> tuple[int, ...]:
        """The groups that run through additions: residual streams, in the order in which they are made."""
        return tuple(g for g in sorted(self.joins) if any(self.nodes[n].name in _ADDITIONS for n in self.joins[g]))

    @cached_property
    def stakes(self) -> tuple[tuple[int, int], ...]:
        """Per group the multiply-accumulates and the parameters that grow with its width.

        A layer between two groups counts for both, so that these do not add up to the whole.
        """
        uses: dict[str, int] = defaultdict(int)
        for site in self.groups.sites:
            uses[site.tensor] += site.uses
        parameters = set(self.groups.parameters)
        found = []
        for index, group in enumerate(self.groups.groups):
            macs = params = 0
            for tensor in {member.tensor for member in group.members}:
                gone = prod(self.groups.shapes[tensor]) - prod(self.groups.compact_shape(tensor, {index: 0}))
                macs += gone * uses[tensor]
                params += gone * (tensor in parameters)
            found.append((macs, params))
        return tuple(found)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The modules that hold parameters, in the order in which they run; those that never do come last."""
        costs = self.costs()
        members: dict[str, set[int]] = defaultdict(set)
        for index, group in enumerate(self.groups.groups):
            for member in group.members:
                members[_owner(member.tensor)].add(index)
        first: dict[str, int] = {}
        for tensor in self.groups.parameters:
            module = _owner(tensor)
            for at in self.readers.get(tensor, ()):
                first[module] = min(at, first.get(module, at))
        found = [Layer(m, *costs[m], tuple(sorted(members[m])), first.get(m)) for m in costs]
        return tuple(sorted(found, key=lambda layer: len(self.nodes) if layer.at is None else layer.at))

    def costs(self, widths: Mapping[int, int] | None = None) -> dict[str, tuple[int, int]]:
        """Module -> its multiply-accumulates and parameters, where group ``g`` keeps ``widths[g]`` channels (all if not named)."""
        macs: Counter[str] = Counter()
        for site in self.groups.sites:
            macs[_owner(site.tensor)] += site.uses * prod(self.groups.compact_shape(site.tensor, widths))
        params: Counter[str] = Counter()
        for tensor in self.groups.parameters:
            params[_owner(tensor)] += prod(self.groups.compact_shape(tensor, widths))
        return {module: (macs[module], count) for module, count in params.items()}

    def kept(self, node: Operator, widths: Mapping[int, int]) -> int | None:
        """How many channels a value holds once group ``g`` has ``widths[g]``; None where it holds a part of a group (after a split)."""
        if any(count != self.groups.groups[group].channels for group, count in node.groups.items()):
            return None
        return sum(widths.get(group, count) for group, count in node.groups.items()) + sum(node.frozen.values())

    def to_dict(self) -> dict[str, Any]:
        """Nodes, edges and reasons as JSON takes them; :meth:`ChannelGroups.to_dict` gives the groups."""
        return {
            "nodes": [
                {
                    **asdict(node),
                    "shape": None if node.shape is None else list(node.shape),
                    "tensors": list(node.tensors),
                    "groups": {str(k): v for k, v in node.groups.items()},
                    "frozen": {str(k): v for k, v in node.frozen.items()},
                }
                for node in self.nodes
            ],
            "edges": [list(edge) for edge in self.edges],
            "reasons": list(self.reasons),
            "joins": {str(group): list(nodes) for group, nodes in self.joins.items()},
            "streams": list(self.streams),
        }

    def to_networkx(self) -> nx.DiGraph:
        """The operators as a directed graph whose attributes are texts and numbers, as file formats want them.

        ``channel_group`` is the number of the group of most of a node's channels, -1 where there is none; ``channel_groups`` lists
        all, as ``number:channels``.
        """
        import networkx as nx

        graph = nx.DiGraph()
        for index, node in enumerate(self.nodes):
            main = node.main_group
            graph.add_node(
                index,
                label=" ".join(part for part in (node.name, node.module) if part),
                kind=node.kind,
                function=node.function,
                module=node.module,
                source=node.source,
                output_shape="x".join(map(str, node.shape or ())),
                tensors=" ".join(node.tensors),
                macs=node.macs,
                channel_group=-1 if main is None else main,
                channel_groups=" ".join(f"{g}:{n}" for g, n in node.groups.items()),
                frozen=sum(node.frozen.values()),
                reasons="; ".join(self.reasons[r] for r in node.frozen),
            )
        graph.add_edges_from(self.edges)
        return graph


_ADDITIONS = frozenset(("add", "add_", "iadd", "sub", "sub_", "__add__", "__radd__", "__iadd__", "__sub__"))


def model_graph(solution: Solution) -> ModelGraph:
    """What an analysis found, as data."""
    macs: dict[tuple[str, str], list[int]] = defaultdict(list)  # one entry for each call, the last call's first
    for site in reversed(solution.groups.sites):
        macs[site.tensor, site.module].append(site.uses * prod(solution.groups.shapes[site.tensor]))
    numbers: dict[fx.Node, int] = {}
    nodes: list[Operator] = []
    edges: set[tuple[int, int]] = set()
    for node in solution.flow.recording.graph.nodes:
        if node.op == "get_attr":
            continue
        tensors = tuple(n.target for n in node.all_input_nodes if n.op == "get_attr" and not n.meta["unknown"])
        calls = [macs[tensor, str(node.meta.get("module", ""))] for tensor in tensors]
        spent = sum(call.pop() for call in calls if call)
        edges.update((numbers[n], len(nodes)) for n in node.all_input_nodes if n in numbers)
        numbers[node] = len(nodes)
        nodes.append(_operator(node, solution, tensors, spent))
    used = sorted({reason for operator in nodes for reason in operator.frozen})
    number = {reason: index for index, reason in enumerate(used)}
    renumbered = (replace(o, frozen={number[r]: n for r, n in o.frozen.items()}) for o in nodes)
    reasons = tuple(solution.reasons[reason] for reason in used)
    return ModelGraph(solution.groups, tuple(renumbered), tuple(sorted(edges)), reasons)


def _operator(node: fx.Node, solution: Solution, tensors: tuple[str, ...], macs: int) -> Operator:
    if node.op != "call_function":
        kind = {"placeholder": "input"}.get(node.op, node.op)
        return Operator(kind, "", kind, shape=node.meta.get("shape"))
    function = function_name(node.target)
    units = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *_units(solution.flow.values[node], solution)]))
    group, reason = solution.group[units], solution.reason[units]
    return Operator(
        "call",
        function,
        function.removesuffix(".__get__").rpartition(".")[2],
        module=str(node.meta.get("module", "")),
        source=str(node.meta.get("source") or ""),
        shape=node.meta.get("shape"),
        tensors=tensors,
        groups=_counted(group),
        frozen=_counted(reason[group < 0]),
        macs=macs,
    )


def _units(value: object, solution: Solution) -> Iterator[Integers]:
    """The channels of a value, or of all parts of a value of several tensors."""
    if isinstance(value, Channels):
        label = value.label[value.label != FIXED].numpy()
        yield solution.unit[label]
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _units(part, solution)


def _counted(numbers: Iterable[int]) -> dict[int, int]:
    values, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True) if v >= 0}


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]
