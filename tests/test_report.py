"""The report is a well-formed page that asks for nothing, shows everything, and trusts no name."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pdc_fx.errors import InputError
from pdc_fx.export.benchmark import BenchmarkReport
from pdc_fx.export.pages.model_graph import ModelGraph, Operator
from pdc_fx.export.pages.similarity import LARGEST, similarities, similarity
from pdc_fx.export.report import clusters, disagreements, layer_rows, render_report, verdict
from pdc_fx.export.timing.turns import BatchTiming, Timing
from pdc_fx.ir import ChannelGroup, ChannelGroups, ClusterPlan, FrozenChannels, MacSite, Member, first_appearance

VOID = {"meta", "br", "link", "img", "input", "hr"}
NAMES = ("<script>alert(1)</script>", "a\" onload='x' &amp;", "层.ünï\u202ecode\ud800.😀", "layer1.0.conv1")
CERTIFICATE: dict[str, Any] = {
    "passed": True,
    "tied_vs_compact": {"passed": True, "max_rel_error": 4.4e-15, "first_difference": None},
    "compact_vs_onnx": {
        "passed": True,
        "max_rel_error": 0.0,
        "notes": [],
        "batches": [1, 3],
        "outputs": [{"name": "<logits>", "batch": 1}],
    },
}
ACCURACY = {"teacher": 0.931, "tied": 0.928, "compact": 0.928, "onnx": 0.9279}


class Page(HTMLParser):
    """Checks that tags nest, and collects elements and texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] not in (["style"], ["script"]):
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)


def group(name: str, channels: int) -> ChannelGroup:
    each = np.arange(channels)[:, None]
    return ChannelGroup(
        name,
        channels,
        (
            Member(f"{name}.weight", 0, "producer", each),
            Member(f"{name}.bias", 0, "channelwise", each),
            Member(f"{name}.next", 1, "consumer", np.arange(4 * channels).reshape(channels, 4)),
        ),
    )


def make_plan(names: tuple[str, ...] = NAMES, *, divisor: int = 2) -> ClusterPlan:
    """One group of 8, 16, ... channels for each name; each keeps one channel of ``divisor``."""
    groups = tuple(group(name, 8 * (index + 1)) for index, name in enumerate(names))
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (10, 4)}
    for g in groups:
        shapes |= {
            f"{g.name}.weight": (g.channels, 3, 3, 3),
            f"{g.name}.bias": (g.channels,),
            f"{g.name}.next": (5, 4 * g.channels),
        }
    sites = tuple(MacSite(name, 64, name) for name, shape in shapes.items() if len(shape) > 1)
    frozen = (FrozenChannels(1000, "<b>fc</b>", "softmax over <channels> & more"),)
    inputs = (((1, 3, 8, 8), "float32"),)
    found = ChannelGroups(groups, frozen, ("aux.<i>",), sites, 0, shapes, tuple(shapes), inputs)
    return ClusterPlan(found, tuple(first_appearance(np.arange(g.channels) % (g.channels // divisor)) for g in groups))


def graph_of(plan: ClusterPlan) -> ModelGraph:
    """Each group is made by one operator, one after the other."""
    made = [
        Operator("call", "torch.conv2d", "conv2d", g.name, tensors=(f"{g.name}.weight",), groups={i: g.channels})
        for i, g in enumerate(plan.groups.groups)
    ]
    nodes = (Operator("input", "", "input"), *made, Operator("output", "", "output", frozen={0: 1000}))
    return ModelGraph(plan.groups, nodes, tuple((i, i + 1) for i in range(len(nodes) - 1)), ("is an output",))


def epoch(number: int) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number, "loss": 1 / number, "accuracy": 0.5, "residual": 0.0, "lr": 0.1 / number}


def render(plan: ClusterPlan | None = None, **changes: Any) -> str:
    plan = plan or make_plan()
    arguments: dict[str, Any] = {
        "title": "resnet<18>",
        "accuracy": ACCURACY,
        "metrics": [epoch(number) for number in range(1, 6)],
        "certificate": CERTIFICATE,
        "command": "pdc-fx compress '<script>' && true\n  --epochs 5",
    }
    return render_report(plan, graph_of(plan), **(arguments | changes))


def weights(plan: ClusterPlan) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in plan.groups.shapes.items()}


def test_the_page_is_well_formed_and_asks_for_nothing() -> None:
    plan = make_plan()
    html = render(plan, original=weights(plan))
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "a"} & {t for t, _ in page.elements}
    assert page.tags("script") == [{"type": "application/json", "id": "data"}, {}]
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    for forbidden in ("https:", "@import", "url(http"):
        assert forbidden not in html, forbidden
    (policy,) = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_and_never_as_markup(name: str) -> None:
    plan = make_plan((name,))
    page = Page(render(plan, title=name, original=weights(plan)))
    shown = name.replace("\u202e", r"\u202e").replace("\ud800", r"\ud800")
    assert shown in page.of("h1")
    assert page.of("button").count(shown) == 2  # of the group and of the layer
    assert page.of("option") == [shown]
    assert len(page.tags("script")) == 2


def test_hostile_text_anywhere_stays_text() -> None:
    evil = "</td></style><script>x()</script>\x00\r\u2028\u2066"
    plan = make_plan((evil,))
    plan = replace(plan, groups=replace(plan.groups, frozen=(FrozenChannels(1, evil, evil),), unreached=(evil,)))
    certificate = {evil: {evil: [evil, {evil: evil}]}, "tied_vs_compact": {"passed": False, "first_difference": evil}}
    html = render(plan, title=evil, accuracy={evil: 0.5}, certificate=certificate, command=evil, original=weights(plan))
    assert len(Page(html).tags("script")) == 2
    assert html.count("</style>") == 1
    assert not {"\x00", "\r", "\u2066"} & set(html)


def test_all_groups_frozen_channels_and_unreached_modules_are_there() -> None:
    plan = make_plan(("layer1.0.conv1", "<script>"))
    page = Page(render(plan))
    for g in plan.groups.groups:
        assert g.name in page.of("button")
        assert f"{g.channels} → {g.channels // 2}" in page.text
        assert f"{g.channels}→{g.channels // 2}" in page.of("text")
    assert "8 channels of group 0 that keeps 4" in page.tags("g")[3]["aria-label"]
    assert {"<b>fc</b>", "softmax over <channels> & more"} <= set(page.of("td")) | set(page.of("th"))
    assert "Not reached by the example inputs: aux.<i>" in page.text
    assert page.of("td").count("4 of 2 channels") == 1


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 2], "all alone"),
        ([0, 0, 1, 1], "2 of 2 channels"),
        ([0, 0, 0, 1, 1, 2], "2 of 2 to 3 channels, 1 alone"),
    ],
)
def test_clusters_in_words(labels: list[int], words: str) -> None:
    assert clusters(np.array(labels)) == words


def test_the_summary_and_the_layers_count_as_by_hand() -> None:
    # 8 channels: weight 8*27, bias 8, reader 5*32, head 40 -> 424 parameters; MACs 64 * (216 + 160 + 40) = 26,624.
    # 4 channels: 4*27 + 4 + 5*16 + 40 = 232 parameters; MACs 64 * (108 + 80 + 40) = 14,592.
    plan = make_plan(("conv",))
    page = Page(render(plan))
    assert page.of("dd")[:4] == ["45.2%", "26.6 k → 14.6 k", "45.3%", "424 → 232"]
    assert "45.2% of the multiply-accumulates (MACs) and 45.3% of the parameters are gone." in page.text
    assert "one forward pass on 1×3×8×8" in page.text
    assert "One fused multiply-add counts as one MAC" in page.text
    rows = {row.module: row for row in layer_rows(plan, graph_of(plan))}
    conv, head = rows["conv"], rows["head"]
    assert (conv.macs.before, conv.macs.after, conv.params.before, conv.params.after) == (24_064, 12_032, 384, 192)
    assert conv.shapes == ("8×3×3×3", "4×3×3×3")
    assert (head.macs.before, head.macs.after, head.shapes) == (2560, 2560, ("10×4", "10×4"))
    assert (conv.macs.before_bar, conv.macs.after_bar) == (100.0, 50.0)
    assert sum(row.macs.after for row in rows.values()) == plan.macs_after


def test_a_value_that_holds_a_part_of_a_group_says_no_number_it_does_not_know() -> None:
    plan = make_plan(("conv",))
    graph = graph_of(plan)
    part = replace(graph.nodes[1], groups={0: 3})
    assert graph.kept(part, plan.widths) is None
    assert graph.kept(graph.nodes[1], plan.widths) == 4
    assert graph.kept(replace(graph.nodes[1], frozen={0: 2}), plan.widths) == 6


def test_accuracies_are_shown_with_their_distance_from_the_teacher() -> None:
    page = Page(render())
    assert [t for t in page.of("td") if t.endswith("%")][:4] == ["93.10%", "92.80%", "92.80%", "92.79%"]
    assert [t for t in page.of("td") if t.endswith("points")] == ["−0.30 points", "−0.30 points", "−0.31 points"]
    words = "classifies 93.10% of the test images correctly, the compact network 92.80% (−0.30 points)."
    assert words in page.text


@pytest.mark.parametrize("accuracy", [{}, {"compact": 0.9}, {"teacher": math.nan}])
def test_what_was_not_measured_is_said_to_be_so(accuracy: dict[str, float]) -> None:
    page = Page(render(accuracy=accuracy))
    assert page.of("td").count("not measured") == 4 - (accuracy == {"compact": 0.9})
    assert "classifies" not in page.text
    assert "Not measured when this page was written." in page.of("p")


@pytest.mark.parametrize("value", [93.1, -0.1, math.inf])
def test_an_accuracy_in_percent_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="not between 0 and 1"):
        render(accuracy={"teacher": value})


def test_a_benchmark_that_ran_is_shown() -> None:
    times = BatchTiming(8, Timing(3.0, 2.9, 3.3, 1.0), Timing(2.0, 1.9, 2.1, 1.0), 1.5, 0.75)
    path = Path("model.onnx")
    timing = BenchmarkReport(path, path, 1, 1, 1.0, (times,), 30, 5, 2, ("cpu",), "onnxruntime <1>")
    text = Page(render(timing=timing)).text
    for part in ("3.000 ms", "2.000 ms", "1.50×", "efficiency 0.75", "Medians of 30 calls", "onnxruntime <1>"):
        assert part in text
    assert "Not measured when" not in text
    assert "peak memory" not in text
    detailed = replace(times, dense_memory=3_000_000, compact_memory=2_000_000, reasons=("widths <8>",))
    text = Page(render(timing=replace(timing, timings=(detailed,)))).text
    assert "Batch 8: peak memory 3 MB dense, 2 MB compact. widths <8>" in text


@pytest.mark.parametrize(
    ("certificate", "badge", "sentence"),
    [
        (CERTIFICATE, "✓ Verified: every comparison of the certificate passed", "agree to 4.4×10⁻¹⁵ in float64."),
        (CERTIFICATE | {"passed": False}, "✗ Not verified: a comparison of the certificate failed", ""),
        (
            CERTIFICATE | {"deep": {"list": [{"passed": False}]}},
            "✗ Not verified: a comparison of the certificate failed",
            "",
        ),
        (
            {"compact_vs_onnx": {"passed": False, "max_rel_error": None, "tolerance": 1e-4}},
            "✗ Not verified: a comparison of the certificate failed",
            "Compact network and ONNX file do not agree: relative error not finite, allowed 10⁻⁴.",
        ),
        (CERTIFICATE | {"passed": None}, "? Not verified: the certificate holds no verdict", ""),
        ({}, "? Not verified: the certificate holds no verdict", "There is no certificate: nothing was verified."),
    ],
)
def test_nothing_but_a_passed_certificate_reads_as_verified(
    certificate: dict[str, Any], badge: str, sentence: str
) -> None:
    page = Page(render(certificate=certificate))
    assert badge in page.of("p")
    assert sentence in page.text
    assert ("nothing was verified" in page.text) == (not certificate)
    assert page.of("td").count("FAILED") == ("do not agree" in sentence)


@pytest.mark.parametrize("passed", [1, "true", [True], None])
def test_a_verdict_is_a_boolean(passed: Any) -> None:
    assert verdict({"passed": passed}) is None


def test_the_certificate_is_flattened() -> None:
    texts = Page(render()).texts
    rows = {key[1]: value[1] for key, value in pairwise(texts) if key[0] == "code" and value[0] == "td"}
    assert rows["tied_vs_compact.max_rel_error"] == "4.4e-15"
    assert rows["tied_vs_compact.first_difference"] == "none"
    assert rows["compact_vs_onnx.batches"] == "1, 3"
    assert rows["compact_vs_onnx.outputs.0.name"] == "<logits>"


def test_counts_that_disagree_are_pointed_out() -> None:
    plan = make_plan(("conv",))
    assert disagreements(plan, {"macs_after": plan.macs_after, "params_after": None}) == []
    assert (
        "params before: 7 in the certificate, 424 by the plan"
        in Page(render(plan, certificate={"params_before": 7, "params_after": 1})).text
    )


def test_a_plan_that_merges_nothing_says_so() -> None:
    plan = make_plan(("conv",), divisor=1)
    whole = Page(render(plan, original=weights(plan)))
    assert "Nothing was removed" in whole.text
    assert [dd for dd in whole.of("dd") if dd.endswith("%")][:2] == ["0%", "0%"]
    assert not whole.tags("canvas")
    assert "No two channels of this network may be merged" in Page(render(make_plan(()))).text


def test_sections_without_content_are_left_out() -> None:
    plan = make_plan(("conv",))
    everything = ["Measured", "Network", "Channel groups", "Cost per layer", "Frozen"]
    assert Page(render(plan, metrics=[], command="")).of("h2") == everything
    extra = {"Training", "Filters and their clusters", "Repeat it"}
    assert set(Page(render(plan, original=weights(plan))).of("h2")) == {*everything, *extra}


def test_similarity_is_that_of_the_filters_ordered_by_cluster() -> None:
    plan = make_plan(("conv",))
    plan = plan.with_clusters([np.array([0, 1, 2, 1, 2, 3, 1, 4])])
    tensors = weights(plan)
    tensors["conv.weight"][3] = 2.5 * tensors["conv.weight"][1]
    tensors["conv.weight"][5] = 0
    found = similarity(plan, 0, tensors)
    assert found.order.tolist() == [1, 3, 6, 2, 4, 0, 5, 7]
    assert found.sizes.tolist() == [3, 2, 1, 1, 1]
    assert found.cosines[0, 1] == pytest.approx(1.0)
    assert not found.cosines[6].any()  # a filter of zeros is like no other
    rows = tensors["conv.weight"].flatten(1).double().numpy()[found.order]
    for a in (0, 2, 5):
        for b in (1, 3, 7):
            expected = rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b])
            assert found.cosines[a, b] == pytest.approx(expected)
    inside, across = found.means()
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert inside == pytest.approx(np.mean([found.cosines[pair] for pair in pairs]))
    assert across is not None
    packed = np.frombuffer(base64.b64decode(found.to_dict()["cosines"]), np.int8)
    assert np.abs(packed / 127 - found.cosines[np.triu_indices(8)]).max() <= 0.5 / 127 + 1e-12


def test_what_is_too_large_for_the_page_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.export.pages.similarity.ROOM", 300_000)
    plan = make_plan(tuple(f"conv{number}" for number in range(33)))  # 8 to 264 channels
    tensors = weights(plan)
    stakes = [(channels, 0) for channels in range(33)]
    found, left_out = similarities(plan, tensors, stakes)
    channels = [plan.groups.groups[one.group].channels for one in found]
    assert max(channels) <= LARGEST < 264
    assert left_out == 33 - len(found) > 1
    assert channels == sorted(channels)
    words = Page(render(plan, original=tensors)).text
    assert f"Left out to keep the page small: {left_out} other group" in words
