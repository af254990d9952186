"""Latency as a measure of a budget: foretold from layer times in ONNX Runtime, and proved on the network itself.

The planner asks what a network would take at some widths, thousands of times; :class:`~pdc_fx.passes.latency.LatencyModel` answers from
a table of layer times. What the table lacks for this model is measured first (:mod:`pdc_fx.export.timing.layer_times`). When a plan is
made, the network it leads to is built, by its shapes alone, exported and timed in alternation with the dense one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError
from pdc_fx.export.benchmark import benchmark
from pdc_fx.export.onnx import export_onnx
from pdc_fx.export.session import PROVIDERS, default_threads
from pdc_fx.export.timing.latency_table import open_table, require_all, this_machine
from pdc_fx.export.timing.layer_times import time_layers, time_network
from pdc_fx.export.timing.turns import BatchTiming
from pdc_fx.files import scratch_folder
from pdc_fx.ir import ChannelGroups, ClusterPlan
from pdc_fx.passes.analysis import Analysis, AnalyzeDependencies
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.budget import Widths
from pdc_fx.passes.latency import LatencyModel, layers_of
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.trace import record, zeros_of

_SECONDS, _RUNS = 2.0, (15, 100)
"""How long a network is timed, and the fewest and the most runs of that."""
_log = logging.getLogger(__name__)


class Latency:
    """The time of one run in ONNX Runtime, as a measure for :class:`~pdc_fx.passes.allocation.PlanClusters`. Use it in a ``with`` block.

    Args:
        model: the network; it is not changed.
        groups: those of the model. Its example inputs give the batch size that is timed.
        provider: a key of :data:`~pdc_fx.export.session.PROVIDERS`.
        table: a file of layer times; that in the cache directory where it is None. It is made, or completed, if it speaks of this machine.
        threads: threads of ONNX Runtime; None for all processors of this process.

    Raises:
        InputError: an unknown provider, or a table that does not fit (:func:`~pdc_fx.export.timing.latency_table.open_table`).
        ArtifactError: a table that is damaged.
    """

    what = "latency"

    def __init__(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        *,
        provider: str = "cpu",
        table: Path | None = None,
        threads: int | None = None,
    ) -> None:
        if provider not in PROVIDERS:
            raise InputError(f"unknown provider {provider!r}", hint=f"use one of {', '.join(PROVIDERS)}")
        self._model, self._groups = model, groups
        self._here = this_machine(provider, threads or default_threads())
        self._table, self._file = open_table(table, self._here)
        self._is_here = self._table.target == self._here
        self._stack = ExitStack()

    def __enter__(self) -> Latency:
        self._folder = self._stack.enter_context(scratch_folder())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the times hold for."""
        target = self._table.target
        return {
            "device": target.device,
            "provider": target.provider,
            "threads": target.threads,
            "runtime": target.runtime,
            "batch": self._groups.inputs[0][0][0],
        }

    def cost(self, widths: Widths | None, /) -> float:
        """Nanoseconds, foretold."""
        return self._foretold(widths)

    def proof(self, plan: ClusterPlan) -> float | None:
        """The reduction that is measured on the network of the plan; None where another machine's table does not know it.

        It is that of the quickest tenth of all runs, which other processes have disturbed least.
        """
        widths = hashlib.sha256(repr((plan.groups.digest(), sorted(plan.widths.items()))).encode()).hexdigest()
        key = f"{self._network(self._foretold)}, widths {widths[:16]}"
        reductions = self._table.reductions
        if key not in reductions and self._is_here:
            compact = merge_channels(self._model, plan, self._inputs, self._analysis)
            path = self._folder / "compact.onnx"
            export_onnx(compact, self._inputs, path, dynamic_batch=False)
            timing = self._timed(path)
            reductions[key] = 1 - timing.compact.p10_ms / timing.dense.p10_ms
            self._table.save(self._file)
            foretold = 1 - self.cost(plan.widths) / self.cost(None)
            times = f"{timing.dense.p10_ms:.2f} ms -> {timing.compact.p10_ms:.2f} ms"
            _log.info(f"foretold {foretold:.1%}, measured {reductions[key]:.1%} ({times})")
        return reductions.get(key)

    @cached_property
    def _foretold(self) -> LatencyModel:
        model = LatencyModel(self._groups, layers_of(record(self._model, self._inputs)))
        table = self._table
        missing = {key: layer for key, layer in model.needed.items() if key not in table.layers}
        network = self._network(model)
        is_known = network in table.networks
        if not self._is_here:
            require_all(table, self._file, len(missing) + (not is_known))
        if missing:
            _log.info(f"timing {len(missing)} layers on {table.target} ...")
            times = time_layers(missing, provider=self._here.provider, threads=self._here.threads)
            table.layers.update((key, time / 1e3) for key, time in times.items())
        if not is_known:
            time = time_network(self._dense, provider=self._here.provider, threads=self._here.threads)
            table.networks[network] = time / 1e3
        if missing or not is_known:
            table.save(self._file)
        model.fill({key: 1e3 * time for key, time in table.layers.items()}, 1e3 * table.networks[network])
        return model

    def _network(self, model: LatencyModel) -> str:
        """What makes up the dense network: its layers and what they write."""
        digest = hashlib.sha256(repr([(use.layer.key(), use.positions) for use in model.uses]).encode()).hexdigest()
        shape = "x".join(map(str, self._groups.inputs[0][0]))
        return f"{len(model.uses)} layers on {shape}, {digest[:16]}"

    @cached_property
    def _inputs(self) -> tuple[Tensor, ...]:
        if not self._groups.inputs:
            raise InputError("a model whose inputs are no tensors cannot be timed", hint="give --flops-reduction")
        device = next((t.device for t in named_tensors(self._model).values()), torch.device("cpu"))
        return zeros_of(self._groups.inputs, device)

    @cached_property
    def _analysis(self) -> Analysis:
        return AnalyzeDependencies(self._inputs, self._groups.frozen_names)(self._model)

    @cached_property
    def _dense(self) -> Path:
        path = self._folder / "dense.onnx"
        export_onnx(self._model, self._inputs, path, dynamic_batch=False)
        return path

    @cached_property
    def _runs(self) -> int:
        fewest, most = _RUNS
        return max(fewest, min(most, int(1e3 * _SECONDS / self._alternating(self._dense, 3).dense.median_ms)))

    def _timed(self, path: Path) -> BatchTiming:
        """The dense network and another."""
        return self._alternating(path, self._runs)

    def _alternating(self, path: Path, runs: int) -> BatchTiming:
        report = benchmark(
            self._dense,
            path,
            batch_sizes=(self._groups.inputs[0][0][0],),
            runs=runs,
            threads=self._here.threads,
            provider=self._here.provider,
        )
        return report.timings[0]
