"""The graph of operators says what the analysis says, and other programs can read it."""

from __future__ import annotations

import re

import networkx as nx
import pytest
import torch
import torchvision
from torch import nn

from pdc_fx.export.drawing import hues
from pdc_fx.export.graph_files import to_dot, to_graphml
from pdc_fx.export.inspection import frozen_rows, group_rows, layer_rows, summary
from pdc_fx.export.model_graph import ModelGraph
from pdc_fx.pipeline import inspect


class Small(nn.Module):
    """A residual block, a concat, a part that stays, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side, self.gate, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(14, 4, 1), nn.Linear(4, 5)
        self.spare = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block(x).relu()
        x = torch.cat([x, self.side(x)], 1)
        return self.head(self.gate(x).softmax(1).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> ModelGraph:
    return inspect(Small(), torch.zeros(1, 3, 6, 6))


@pytest.fixture(scope="module", params=["small", "resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def graph(request: pytest.FixtureRequest, small: ModelGraph) -> ModelGraph:
    if request.param == "small":
        return small
    return inspect(getattr(torchvision.models, request.param)(), torch.zeros(1, 3, 64, 64))


def test_small(small: ModelGraph) -> None:
    names = [node.name for node in small.nodes]
    assert names == [
        "input",
        "conv2d",
        "conv2d",
        "relu",
        "add",
        "conv2d",
        "cat",
        "conv2d",
        "softmax",
        "mean",
        "linear",
        "output",
    ]
    stream, side = (next(i for i, g in enumerate(small.groups.groups) if g.name == name) for name in ("stem", "side"))
    assert small.streams == (stream,)
    assert small.joins == {stream: (4,)}
    assert small.nodes[6].groups == {stream: 8, side: 6}
    assert small.nodes[7].frozen
    assert {small.reasons[r] for r in small.nodes[10].frozen} == {"is an output of the model"}
    assert (4, 6) in small.edges
    assert (5, 6) in small.edges
    assert [layer.module for layer in small.layers][-1] == "spare"
    assert small.layers[-1].at is None
    sentences = " ".join(summary(small))
    assert "1 residual stream couples the outputs of 2 layers" in sentences
    assert "5 channels of head are frozen" in sentences


def test_edges_go_forward_and_counts_agree(graph: ModelGraph) -> None:
    assert all(0 <= start < stop < len(graph.nodes) for start, stop in graph.edges)
    assert sum(node.macs for node in graph.nodes) + graph.groups.fixed_macs == graph.groups.macs()
    assert sum(layer.macs for layer in graph.layers) + graph.groups.fixed_macs == graph.groups.macs()
    assert sum(layer.params for layer in graph.layers) == graph.groups.params()
    for node in graph.nodes:
        for group, count in node.groups.items():
            assert 0 < count <= graph.groups.groups[group].channels


def test_every_group_is_seen_where_its_producers_run(graph: ModelGraph) -> None:
    for index, group in enumerate(graph.groups.groups):
        for member in group.producers:
            assert any(index in graph.nodes[n].groups for n in graph.readers[member.tensor])


def test_stakes_are_what_goes_with_a_group(graph: ModelGraph) -> None:
    macs, params = graph.groups.macs(), graph.groups.params()
    for index, stake in enumerate(graph.stakes):
        assert stake == (macs - graph.groups.macs({index: 0}), params - graph.groups.params({index: 0}))


def test_rows_of_the_page_add_up(graph: ModelGraph) -> None:
    assert sum(row.channels for row in frozen_rows(graph)) + graph.groups.mergeable_channels == graph.groups.channels
    layers, (count, params) = layer_rows(graph)
    assert len(layers) + count == len(graph.layers)
    assert sum(row.params for row in layers) + params == graph.groups.params()
    rows = group_rows(graph)
    assert max((row.bar for row in rows), default=100) == 100
    assert len(hues(graph)) == len(rows)


def test_graphml_and_dot_hold_the_same_graph(graph: ModelGraph) -> None:
    read = nx.parse_graphml(to_graphml(graph.to_networkx()), node_type=int)
    assert set(read.edges) == set(graph.edges)
    for index, node in enumerate(graph.nodes):
        assert read.nodes[index]["macs"] == node.macs
        assert read.nodes[index]["module"] == node.module
        assert read.nodes[index]["channel_group"] == (-1 if node.main_group is None else node.main_group)
    dot = to_dot(graph.to_networkx())
    assert {tuple(map(int, pair)) for pair in re.findall(r"^  (\d+) -> (\d+)$", dot, re.M)} == set(graph.edges)
    assert len(re.findall(r"^  \d+ \[", dot, re.M)) == len(graph.nodes)


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "<tag>&amp;", "层\u202e", "line\nbreak", "\ud800", "a\x00b"])
def test_odd_names_survive_in_files(name: str) -> None:
    net = nn.Sequential()
    net.add_module(name, nn.Conv2d(1, 4, 1))
    graph = inspect(net, torch.zeros(1, 1, 2, 2)).to_networkx()
    text = to_graphml(graph)
    assert text.encode()
    shown = nx.parse_graphml(text).nodes["1"]["module"]
    assert shown == name or "\\u" in shown
    line = next(line for line in to_dot(graph).splitlines() if line.startswith("  1 ["))
    texts = r'"(?:[^"\\\n]|\\.)*"'
    assert re.fullmatch(rf"  1 \[(?:\w+=(?:{texts}|\d+) ?)+\]", line)


def test_files_are_the_same_every_time(small: ModelGraph) -> None:
    again = inspect(Small(), torch.zeros(1, 3, 6, 6))
    assert again.to_dict() == small.to_dict()
    assert to_dot(again.to_networkx()) == to_dot(small.to_networkx())
