"""What the command line shows: tables of at most 80 columns, progress bars, one line per epoch where there is no terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pdc_fx.distill import StepReport
from pdc_fx.ir import Certificate, ChannelGroup, ChannelGroups, Role
from pdc_fx.words import number, quantity, share, told_apart, visible

if TYPE_CHECKING:
    from pdc_fx.export.pages.model_graph import ModelGraph


class _Console(Console):
    """One whose reader may go away (``| head``), which is no failure of what was asked."""

    def on_broken_pipe(self) -> None:
        reader_has_gone()


def reader_has_gone() -> NoReturn:
    """End as a program does that is killed by SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
    raise SystemExit(128 + 13)


out = _Console(highlight=False)
err = Console(stderr=True, highlight=False)


_ALONE: list[TextIO] = []
"""Standard output, while what others print goes elsewhere."""


@contextmanager
def alone_on_stdout() -> Iterator[None]:
    """Leave standard output to :func:`print_text`: what the user's model prints goes to standard error."""
    _ALONE.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _ALONE.pop()


def print_text(text: str) -> None:
    """What a program reads, on standard output."""
    stream = _ALONE[-1] if _ALONE else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output. JSON has no infinity: such a number becomes null."""
    print_text(json.dumps(_finite(data), default=str, allow_nan=False))


def print_notes(notes: Sequence[str]) -> None:
    """What may not be as it was meant, a line each."""
    for note in notes:
        err.print(f"note: {note}", soft_wrap=True, markup=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(name: str) -> str:
    r"""A name as a terminal may print it: no markup, and escapes in place of what would recolour, reorder or break its line.

    >>> print(shown("[bold]\x1b[31mred\n"))
    \[bold]\u001b[31mred\n
    """
    return escape(visible(name).replace("\n", "\\n").replace("\t", "\\t"))


def percent(value: float | None) -> str:
    """A share of 0 to 1 in per cent; a dash for None."""
    return "-" if value is None else f"{value:.2%}"


def print_error(message: str) -> None:
    """One message on standard error."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


SHOWN = 20
"""Rows of the table of groups, without ``--all``."""

BRANCHES, LEAVES = 6, 4
"""Groups in the tree, and modules on a branch, without ``--all``."""


def print_graph(name: str, graph: ModelGraph, *, everything: bool) -> None:
    """The dependency report for a terminal: figures, the table of groups, the tree of coupled ones, what is frozen."""
    groups = graph.groups
    macs = groups.macs()
    out.print(f"[bold]{shown(name)}[/]: {quantity(macs)} MACs, {quantity(groups.params())} parameters")
    out.print(
        f"{groups.mergeable_channels} of {groups.channels} channels in {number(len(groups.groups), 'group')} can be merged; "
        f"{share(groups.mergeable_macs(), macs)} of the MACs are in layers that can shrink"
    )
    if groups.groups:
        out.print(groups_table(graph, None if everything else SHOWN))
    if any(len(modules_of(group, "producer")) > 1 for group in groups.groups):
        out.print(groups_tree(graph, everything=everything))
    if groups.frozen:
        out.print(frozen_table(groups))
    for module in groups.unreached:
        out.print(f"not reached by the example inputs: {shown(module)}")


def groups_table(graph: ModelGraph, limit: int | None = None) -> Table:
    """One row per channel group, the one with most multiply-accumulates at stake first."""
    groups = graph.groups.groups
    table = Table(title="channel groups", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("made by", overflow="fold", max_width=30)
    for column in ("channels", "producers", "readers", "MACs", "params"):
        table.add_column(column, justify="right", no_wrap=True)
    ordered = sorted(range(len(groups)), key=lambda index: -graph.stakes[index][0])
    names = told_apart([group.name for group in groups])
    for index in ordered[:limit]:
        count = Counter(member.role for member in groups[index].members)
        figures = (groups[index].channels, count["producer"], count["consumer"])
        table.add_row(shown(names[index]), *map(str, figures), *map(quantity, graph.stakes[index]))
    table.caption_justify = "left"
    table.caption = "MACs, params: of the layers that shrink with the group"
    if limit is not None and len(ordered) > limit:
        table.caption += f"; {len(ordered) - limit} more (--all shows them)"
    return table


def groups_tree(graph: ModelGraph, *, everything: bool) -> Tree:
    """The groups of several producers: which modules make them, what joins them, who reads them."""
    coupled = [i for i, group in enumerate(graph.groups.groups) if len(modules_of(group, "producer")) > 1]
    coupled.sort(key=lambda index: -graph.stakes[index][0])
    tree = Tree("layers whose channels are coupled", guide_style="dim")
    for index in coupled if everything else coupled[:BRANCHES]:
        group = graph.groups.groups[index]
        kind = "residual stream" if index in graph.streams else "group"
        branch = tree.add(f"[bold]{shown(group.name)}[/] {kind} of {group.channels} channels")
        joined = [
            f"{graph.nodes[n].name.strip('_')} in {graph.nodes[n].module or 'forward'}"
            for n in graph.joins.get(index, ())
        ]
        parts = {
            "made by": modules_of(group, "producer"),
            "joined by": list(dict.fromkeys(joined)),
            "read by": modules_of(group, "consumer"),
        }
        for title, modules in parts.items():
            if modules:
                limit = len(modules) if everything else LEAVES
                more = f" and {len(modules) - limit} more" if len(modules) > limit else ""
                branch.add(f"[dim]{title}[/] {shown(', '.join(modules[:limit]))}{more}")
    if not everything and len(coupled) > BRANCHES:
        tree.add(f"[dim]{len(coupled) - BRANCHES} more (--all shows them)[/]")
    return tree


def modules_of(group: ChannelGroup, role: Role) -> list[str]:
    """The modules whose tensors play a role in a group."""
    names = (m.tensor.rpartition(".")[0] or m.tensor for m in group.members if m.role == role)
    return list(dict.fromkeys(names))


def frozen_table(groups: ChannelGroups) -> Table:
    """One row per reason."""
    table = Table(title="frozen", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("channels", justify="right")
    table.add_column("made by", overflow="fold", max_width=24)
    table.add_column("why", overflow="fold")
    for entry in groups.frozen:
        table.add_row(str(entry.channels), shown(entry.module), shown(entry.reason))
    return table


def print_certificate(certificate: Certificate) -> None:
    """The result of a dry run."""
    verdict = "[bold green]passed[/]" if certificate.passed else "[bold red]FAILED[/]"
    out.print(
        f"[bold]{shown(certificate.model)}[/]: {verdict}, relative error {certificate.max_rel_error:.2g} "
        f"(allowed {certificate.tolerance:g}, {certificate.dtype}, seed {certificate.seed})"
    )
    out.print(
        f"half of the channels merged at random: MACs {quantity(certificate.macs_before)} -> {quantity(certificate.macs_after)}, "
        f"parameters {quantity(certificate.params_before)} -> {quantity(certificate.params_after)}; "
        f"{certificate.mergeable_channels} of {certificate.channels} channels in {number(certificate.groups, 'group')}; "
        f"result: {certificate.result_type}"
    )
    if certificate.first_difference:
        out.print(f"first difference: {shown(certificate.first_difference)}")
    for entry in certificate.frozen:
        out.print(f"frozen: {entry.channels} channels of '{shown(entry.module)}': {shown(entry.reason)}")
    for module in certificate.unreached:
        out.print(f"not reached: {shown(module)}")
    out.print("seconds: " + ", ".join(f"{phase} {value:.2f}" for phase, value in certificate.seconds.items()))


def result_table(rows: list[tuple[str, str, str]], title: str) -> Table:
    """Before and after."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def delivery_rows(certificate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Accuracy, multiply-accumulates and parameters of an output directory's certificate."""
    accuracy = certificate["accuracy"]
    return [
        ("accuracy, PyTorch", percent(accuracy.get("original", accuracy["teacher"])), percent(accuracy["compact"])),
        (
            "MACs",
            quantity(certificate["macs_before"]),
            f"{quantity(certificate['macs_after'])} ({share(certificate['macs_after'], certificate['macs_before'])})",
        ),
        (
            "parameters",
            quantity(certificate["params_before"]),
            f"{quantity(certificate['params_after'])} ({share(certificate['params_after'], certificate['params_before'])})",
        ),
    ]


def print_comparisons(certificate: Mapping[str, Any]) -> None:
    """The two comparisons of an output directory, and accuracies."""
    for key, title in (
        ("tied_vs_compact", "tied against compact"),
        ("compact_vs_onnx", "compact against ONNX Runtime"),
    ):
        part = certificate[key]
        verdict = "[green]passed[/]" if part["passed"] else "[bold red]FAILED[/]"
        error = "not finite" if part["max_rel_error"] is None else f"{part['max_rel_error']:.2g}"
        out.print(f"{title}: {verdict}, relative error {error} (allowed {part['tolerance']:g}, {part['dtype']})")
    if latency := certificate.get("latency"):
        measured = latency["measured_reduction"]
        found = "not measured on this machine" if measured is None else f"measured {measured:.1%}"
        out.print(
            f"time of a run, batch {latency['batch']}, {latency['threads']} threads: "
            f"{latency['latency_reduction']:.1%} less asked, {latency['predicted_reduction']:.1%} foretold, {found}"
        )
    accuracies = (f"{name} {percent(value)}" for name, value in certificate["accuracy"].items())
    out.print("test accuracy: " + ", ".join(accuracies))


class TrainingProgress:
    """Bars of epochs and steps on a terminal, one plain line per epoch elsewhere; always on standard error.

    Rich shows no bars where they cannot move, and leaves colours out where ``NO_COLOR`` is set.
    """

    def __init__(self, epochs: int, notes: Sequence[str] = ()) -> None:
        self.epochs, self._notes = epochs, notes
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
            console=err,
        )
        self._run = self._progress.add_task("epoch", total=None, count=f"0/{epochs}", left="")
        self._epoch = self._progress.add_task("step", total=None, count="", left="")
        self._status = Text("preparing", style="dim")
        self._residual: float | None = None
        self._display = Live(Group(self._progress, self._status), console=err, transient=True)

    def __enter__(self) -> TrainingProgress:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def on_start(self, records: Sequence[Mapping[str, Any]]) -> None:
        """What will be trained and why it is not what was asked for, before any time is spent on it."""
        said = {
            "images": "{mixed:.0%} of the batches are mixed by CutMix: {reason}",
            "layout": "--channels-last is left out, since the network does not run with it: {reason}",
            "features": "maps are not matched: {reason}",
            "network": "all filters are trained, tied, which takes longer than the small network: {reason}",
        }
        print_notes(self._notes)
        for record in records:
            if record.get("reason"):
                err.print(said[record["kind"]].format(**record), soft_wrap=True, markup=False)
            if record.get("accuracy") is not None:
                err.print(f"before training: held-out accuracy {percent(record['accuracy'])}")

    def on_step(self, report: StepReport) -> None:
        if report.residual is not None:  # measured at the end of an epoch
            self._residual = report.residual
        residual = "" if self._residual is None else f"residual {self._residual:.1g}, "
        self._status.plain = (
            f"loss {report.loss:.3f}, accuracy {report.accuracy:.1%}, learning rate {report.lr:.2g}, {residual}"
            f"MACs {quantity(report.macs)}"
        )
        if report.step < self._progress.tasks[self._epoch].completed:  # the next epoch: its time counts anew
            self._progress.reset(self._epoch)
        self._progress.update(
            self._run,
            total=self.epochs * report.steps,
            completed=report.epoch * report.steps + report.step,
            count=f"{report.epoch + 1}/{self.epochs}",
            left="left",
        )
        self._progress.update(
            self._epoch, total=report.steps, completed=report.step, count=f"{report.step}/{report.steps}", left="left"
        )

    def on_epoch(self, record: dict[str, Any]) -> None:
        epoch = f"epoch {record['epoch']}/{self.epochs}: loss {record['loss']:.4f}, held-out accuracy {percent(record['accuracy'])}"
        if err.is_terminal and not err.is_dumb_terminal:  # the bars below show the rest, and a long line would break
            err.print(f"{epoch}, residual {record['residual']:.2g}, {duration(record['seconds'])}", soft_wrap=True)
            return
        left = self.epochs - record["epoch"]
        rest = f", about {duration(left * record['seconds'])} left" if left else ""
        err.print(
            f"{epoch}, learning rate {record['lr']:.2g}, MACs {quantity(record['macs'])}, tie residual {record['residual']:.2g}, "
            f"{duration(record['seconds'])}{rest}",
            soft_wrap=True,
        )


def warn_of_loss(metrics: Iterable[Mapping[str, Any]]) -> None:
    """Say so where training ended below what it began with, or below what no training at all would have given."""
    measured = {
        record["kind"]: record for record in metrics if record.get("accuracy") is not None
    }  # of the epochs the last
    before, trained = measured.get("start"), measured.get("epoch")
    after = measured.get("final", trained)
    if trained and after and after["accuracy"] < trained["accuracy"] - REESTIMATED:
        err.print(
            f"note: with batch-norm statistics estimated anew at the end, held-out accuracy is {percent(after['accuracy'])}, and it was "
            f"{percent(trained['accuracy'])} before: are the images prepared as it wants (--mean, --std, --augment)?",
            soft_wrap=True,
        )
    if before and after and before["residual"] < TIED and after["accuracy"] < before["accuracy"]:
        err.print(
            f"note: training ended at a held-out accuracy of {percent(after['accuracy'])}, below the {percent(before['accuracy'])} that it "
            "began with; a lower --lr or more --epochs may help",
            soft_wrap=True,
        )
    untrained = measured.get("untrained")
    if untrained and after and after["accuracy"] < untrained["accuracy"]:
        err.print(
            f"note: held-out accuracy is {percent(after['accuracy'])}, and {percent(untrained['accuracy'])} without training (--epochs 0): "
            "few steps do harm at a high rate; a lower --lr or more --epochs may help",
            soft_wrap=True,
        )


REESTIMATED = 0.01
"""How much accuracy new statistics may cost; they are those of the last weights, and mostly gain some."""

TIED = 1e-4
"""The residual, relative, up to which a network counts as tied."""


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(0.4), duration(59), duration(600), duration(5400), duration(360000)
    ('0 s', '59 s', '10 min', '1.5 h', '100 h')
    """
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
