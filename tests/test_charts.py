"""Training curves: what was measured is drawn inside its box, what cannot be drawn is said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pdc_fx.errors import InputError
from pdc_fx.export.pages.charts import HEIGHT, WIDTH, charts, round_steps, table


def epoch(number: int, **values: Any) -> dict[str, Any]:
    plain = {
        "loss": 1.0 / number,
        "accuracy": 0.5 + number / 100,
        "train_accuracy": 0.6 + number / 100,
        "residual": 10.0**-number,
        "lr": 0.1 / number,
        "macs": 5,
        "seconds": 1.0,
    }
    return {"kind": "epoch", "epoch": number, **plain, **values}


def test_every_measured_quantity_has_a_labelled_chart() -> None:
    found, steady = charts([epoch(number) for number in range(1, 6)])
    assert [chart.title for chart in found] == ["Training loss", "Accuracy", "Tie residual", "Learning rate"]
    assert [chart.unit for chart in found] == ["loss", "accuracy, %", "residual (log scale)", "learning rate"]
    assert [(line.name, line.last) for line in found[1].lines] == [("held out", "55.00%"), ("training", "65.00%")]
    assert found[1].lines[0].points[4].label == "epoch 5, held out: 55.00%"
    assert "10⁻⁵" in [tick.label for tick in found[2].y_ticks]
    assert steady == ["MACs by the plan: 5e-06 M after every epoch."]


def test_a_plan_that_changes_is_drawn() -> None:
    found, steady = charts([epoch(number, macs=10**7 // number, residual=0.0) for number in (1, 2)])
    assert [found[-1].title, found[-1].lines[0].last] == ["MACs by the plan", "5 M"]
    assert steady == ["Tie residual: 0 after every epoch."]


@pytest.mark.parametrize("metrics", [[], [{"kind": "step", "loss": 1.0}]])
def test_without_records_there_is_nothing(metrics: list[dict[str, Any]]) -> None:
    assert charts(metrics) == ([], [])
    assert table(metrics) == (["Epoch"], [])


def test_the_table_holds_what_the_charts_show() -> None:
    head, rows = table([epoch(2, accuracy=None), epoch(1, loss=math.nan), epoch(3)])
    assert head[:4] == ["Epoch", "Training loss", "Accuracy, held out", "Accuracy, training"]
    assert [row[:3] for row in rows] == [["1", "nan", "51.00%"], ["2", "0.5", "–"], ["3", "0.3333", "53.00%"]]


def test_what_cannot_be_drawn_is_said() -> None:
    found, _ = charts([epoch(n, loss=value) for n, value in ((1, 2.0), (2, math.inf), (3, math.nan))])
    (line,) = found[0].lines
    assert (len(line.points), found[0].note, line.last) == (1, "2 values not drawn: not finite", "nan")
    found, steady = charts([epoch(1, loss=math.nan, accuracy=None, train_accuracy=None, residual=math.inf)])
    assert [chart.title for chart in found] == ["Learning rate"]
    assert len(steady) == 1


def test_an_epoch_that_was_run_again_counts_once() -> None:
    loss = charts([epoch(2, loss=9.0), epoch(1), epoch(2, loss=0.25)])[0][0]
    assert [point.label for point in loss.lines[0].points] == ["epoch 1: 1", "epoch 2: 0.25"]


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
@pytest.mark.parametrize("key", ["loss", "accuracy", "residual", "lr"])
def test_points_and_ticks_stay_in_the_box(key: str, values: tuple[float, ...]) -> None:
    for chart in charts([epoch(n, **{key: value}) for n, value in enumerate(values, 1)])[0]:
        assert 2 <= len(chart.y_ticks) <= 8
        assert all(0 <= t.at <= HEIGHT for t in chart.y_ticks)
        assert all(0 <= p.x <= WIDTH and 0 <= p.y <= HEIGHT for line in chart.lines for p in line.points)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5, 7, 11, 30, 164, 200, 1000])
def test_epochs_are_named_by_few_whole_numbers(last: int) -> None:
    ticks = round_steps(1, last, whole=True)
    assert all(tick == int(tick) for tick in ticks)
    assert 1 <= len([tick for tick in ticks if 1 <= tick <= last]) <= 7
