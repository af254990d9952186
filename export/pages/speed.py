"""The card of a report that holds the speed: a benchmark may run long after the page was written, and on another machine.

A page cannot be made anew from an output directory alone: the filters before compression, which it compares, are not kept there. So the
card stands between two comments that no name in a model can imitate, since names are escaped, and is replaced by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pdc_fx.errors import ArtifactError
from pdc_fx.export.pages.page import render

if TYPE_CHECKING:
    from pdc_fx.export.benchmark import BenchmarkReport
    from pdc_fx.export.timing.benchmark_torch import TorchReport

BEGIN, END = "<!-- speed -->", "<!-- end of speed -->"


def with_speed(page: str, timing: BenchmarkReport, engines: Sequence[TorchReport] = ()) -> str:
    """A page of :func:`pdc_fx.export.report.render_report` that shows this benchmark in place of what it showed before.

    Raises:
        ArtifactError: it has no such card, or more than one.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ArtifactError("the page has no place for a benchmark", hint="one of this version of pdc-fx has")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    card = render("speed.html.j2", timing=timing, engines=engines)
    return before + card[card.index(BEGIN) : card.index(END) + len(END)] + after
