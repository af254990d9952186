"""The report is a well-formed page that asks for nothing, shows everything, and trusts no name."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdc_fx.errors import InputError
from pdc_fx.export.report import charts, disagreements, render_report, round_steps, verdict
from pdc_fx.ir import ChannelGroup, ChannelGroups, ClusterPlan, FrozenChannels, MacSite, Member, first_appearance

VOID = {"meta", "br", "link", "img", "input", "hr"}
NAMES = ("<script>alert(1)</script>", "a\" onload='x' &amp;", "层.ünï\u202ecode\ud800.😀", "layer1.0.conv1")
CERTIFICATE: dict[str, Any] = {
    "passed": True,
    "tied_vs_compact": {"passed": True, "max_rel_error": 4.4e-15, "first_difference": None},
    "compact_vs_onnx": {"passed": True, "notes": [], "batches": [1, 3], "outputs": [{"name": "<logits>", "batch": 1}]},
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
        if data.strip() and self.open[-1:] != ["style"]:
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


def epoch(number: int, **values: Any) -> dict[str, Any]:
    plain = {
        "loss": 1.0 / number,
        "accuracy": 0.5 + number / 100,
        "residual": 10.0**-number,
        "lr": 0.1,
        "macs": 5,
        "seconds": 1.0,
    }
    return {"kind": "epoch", "epoch": number, **plain, **values}


def render(plan: ClusterPlan | None = None, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "resnet<18>",
        "accuracy": ACCURACY,
        "metrics": [epoch(number) for number in range(1, 6)],
        "certificate": CERTIFICATE,
        "command": "pdc-fx compress '<script>' && true\n  --epochs 5",
    }
    return render_report(plan or make_plan(), **(arguments | changes))


def test_the_page_is_well_formed_and_asks_for_nothing() -> None:
    html = render()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & {
        t for t, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    for forbidden in ("http:", "https:", "//", "@import", "url("):
        assert forbidden not in html, forbidden
    policy = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_light_dark_and_narrow_are_provided_for() -> None:
    html = render()
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 640px" in html
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in Page(html).tags("meta")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_and_never_as_markup(name: str) -> None:
    page = Page(render(make_plan((name,)), title=name))
    shown = name.replace("\u202e", r"\u202e").replace("\ud800", r"\ud800")
    assert shown in page.of("h1")
    assert [shown, f"{shown}.weight", f"{shown}.bias", f"{shown}.next"] == [
        t for t in page.of("code") if t.startswith(shown)
    ]


def test_hostile_text_anywhere_stays_text(tmp_path: Path) -> None:
    evil = "</td></style><script>x()</script>\x00\r\u2028\u2066"
    plan = make_plan((evil,))
    plan = replace(plan, groups=replace(plan.groups, frozen=(FrozenChannels(1, evil, evil),), unreached=(evil,)))
    html = render(
        plan, title=evil, accuracy={evil: 0.5}, certificate={evil: {evil: [evil, {evil: evil}]}}, command=evil
    )
    page = Page(html)
    assert not page.tags("script")
    assert html.count("</style>") == 1
    assert not {"\x00", "\r", "\u2066"} & set(html)
    (tmp_path / "report.html").write_text(html, encoding="utf-8")


def test_all_groups_members_frozen_channels_and_unreached_modules_are_there() -> None:
    plan = make_plan(("layer1.0.conv1", "<script>"))
    page = Page(render(plan))
    codes = page.of("code")
    assert len(page.tags("details")) == len(plan.groups.groups) == 2
    for g in plan.groups.groups:
        assert {g.name, *(m.tensor for m in g.members)} <= set(codes)
        assert f"{g.channels} → {g.channels // 2}" in page.text
    assert {"<b>fc</b>", "aux.<i>"} <= set(codes)
    assert "softmax over <channels> & more" in page.of("td")
    assert "axis 1 · consumer · 4 places per channel" in page.of("span")
    assert [bar["style"] for bar in page.tags("i")][2:] == ["width: 50.0%"] * 2


def test_the_summary_counts_as_by_hand() -> None:
    # 8 channels: weight 8*27, bias 8, reader 5*32, head 40 -> 424 parameters; MACs 64 * (216 + 160 + 40) = 26,624.
    # 4 channels: 4*27 + 4 + 5*16 + 40 = 232 parameters; MACs 64 * (108 + 80 + 40) = 14,592.
    page = Page(render(make_plan(("conv",))))
    assert page.of("strong")[:2] == ["45.2%", "45.3%"]
    assert [a["title"] for a in page.tags("span") if "title" in a] == ["26,624", "14,592", "424", "232"]
    assert "one forward pass on 1×3×8×8" in page.text
    assert "One fused multiply-add counts as one MAC" in page.text


def test_accuracies_are_shown_with_their_distance_from_the_teacher() -> None:
    page = Page(render())
    assert page.of("dd") == ["93.10%", "92.80%", "92.80%", "92.79%"]
    assert page.of("small") == ["−0.30 points", "−0.30 points", "−0.31 points"]


@pytest.mark.parametrize("accuracy", [{}, {"compact": 0.9}, {"teacher": math.nan}])
def test_what_was_not_measured_is_said_to_be_so(accuracy: dict[str, float]) -> None:
    page = Page(render(accuracy=accuracy))
    assert page.of("dd").count("not measured") == 4 - (accuracy == {"compact": 0.9})
    assert not page.of("small")
    assert "classifies" not in page.text


@pytest.mark.parametrize("value", [93.1, -0.1, math.inf])
def test_an_accuracy_in_percent_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="not between 0 and 1"):
        render(accuracy={"teacher": value})


@pytest.mark.parametrize(
    ("certificate", "badge"),
    [
        (CERTIFICATE, "✓ Verified: every comparison of the certificate passed"),
        (CERTIFICATE | {"passed": False}, "✗ Not verified: a comparison of the certificate failed"),
        (
            CERTIFICATE | {"deep": {"list": [{"passed": False}]}},
            "✗ Not verified: a comparison of the certificate failed",
        ),
        (CERTIFICATE | {"passed": None}, "? Not verified: the certificate holds no verdict"),
        ({}, "? Not verified: the certificate holds no verdict"),
    ],
)
def test_nothing_but_a_passed_certificate_reads_as_verified(certificate: dict[str, Any], badge: str) -> None:
    texts = Page(render(certificate=certificate)).of("p")
    assert badge in texts
    assert ("There is none: nothing was verified." in texts) == (not certificate)


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
        "params after: 7 in the certificate, 232 by the plan"
        in Page(render(plan, certificate={"params_after": 7})).text
    )


def test_every_measured_quantity_has_a_labelled_chart() -> None:
    page = Page(render())
    assert len(page.tags("svg")) == len(page.tags("polyline")) == 3
    labels = page.of("text")
    assert labels.count("epoch") == 3
    assert {"loss", "accuracy, %", "residual (log scale)", "10⁻⁵"} <= set(labels)
    assert "epoch 5: 55.00%" in page.of("title")


@pytest.mark.parametrize(
    "metrics", [[], [{"kind": "step", "loss": 1.0}], [epoch(1, loss=math.nan, accuracy=None, residual=math.inf)]]
)
def test_without_data_there_is_no_chart(metrics: list[dict[str, Any]]) -> None:
    page = Page(render(metrics=metrics))
    assert not page.tags("svg")
    assert "Training" not in page.of("h2")


def test_what_cannot_be_drawn_is_said() -> None:
    (loss,) = charts(
        [epoch(n, accuracy=None, residual=None, loss=value) for n, value in ((1, 2.0), (2, math.inf), (3, math.nan))]
    )
    assert (len(loss.points), loss.note, loss.last) == (1, "2 values not drawn: not finite", "nan")
    page = Page(render(metrics=[epoch(1), epoch(2, loss=math.nan)]))
    assert "1 value not drawn: not finite" in page.of("p")


def test_an_epoch_that_was_run_again_counts_once() -> None:
    loss = charts([epoch(2, loss=9.0), epoch(1), epoch(2, loss=0.25)])[0]
    assert [point.label for point in loss.points] == ["epoch 1: 1", "epoch 2: 0.25"]


def test_a_record_without_its_epoch_is_refused() -> None:
    with pytest.raises(InputError, match="which epoch"):
        charts([{"kind": "epoch", "loss": 1.0}])


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.0),
        (1e-300, 1.0),
        (5e-324, 5e-324),
        (1e300, -1e300),
        (0.0, 1.0),
        (3.0, 3.0),
        (-2.0, -2.0),
        (1.0, 1.0 + 2e-16),
    ],
)
@pytest.mark.parametrize("key", ["loss", "accuracy", "residual"])
def test_points_and_ticks_stay_in_the_box(key: str, values: tuple[float, ...]) -> None:
    for chart in charts([epoch(n, **{key: value}) for n, value in enumerate(values, 1)]):
        assert 2 <= len(chart.y_ticks) <= 8
        assert all(0 <= t.at <= 224 for t in chart.y_ticks)
        assert all(0 <= p.x <= 380 and 0 <= p.y <= 224 for p in chart.points)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5, 7, 11, 30, 164, 200, 1000])
def test_epochs_are_named_by_few_whole_numbers(last: int) -> None:
    ticks = round_steps(1, last, whole=True)
    assert all(tick == int(tick) for tick in ticks)
    assert 1 <= len([tick for tick in ticks if 1 <= tick <= last]) <= 7


def test_a_plan_that_merges_nothing_says_so() -> None:
    whole = Page(render(make_plan(("conv",), divisor=1)))
    assert "Nothing was removed" in whole.text
    assert [b for b in whole.of("b") if b] == ["0%", "0%"]
    empty = Page(render(make_plan(())))
    assert "No two channels of this network may be merged" in empty.text
    assert not empty.tags("details")


def test_sections_without_content_are_left_out() -> None:
    plan = make_plan(("conv",))
    plan = replace(plan, groups=replace(plan.groups, frozen=(), unreached=()))
    assert Page(render(plan, metrics=[], command="")).of("h2") == ["Channel groups", "Certificate"]


def test_a_real_network(tmp_path: Path) -> None:
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    from pdc_fx import analyze
    from pdc_fx.passes.check import random_halves

    model = torchvision.models.resnet18(weights=None).eval()
    plan = random_halves(analyze(model, (torch.zeros(1, 3, 64, 64),)), 0)
    page = Page(render(plan))
    assert {g.name for g in plan.groups.groups} <= set(page.of("code"))
    assert {f.reason for f in plan.groups.frozen} <= set(page.of("td"))
