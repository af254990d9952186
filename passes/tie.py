"""Plan -> tied module: members of a cluster are made, and kept, identical while the network trains at full width.

Let ``F_1 .. F_m`` be the filters of a cluster (with their batch-norm entries and all that rides on the channel). Tying projects
each onto the centroid ``(F_1 + ... + F_m) / m``. Since the projection is linear and the members start equal, projecting the
weights after a step of SGD is the same as averaging the gradients inside clusters before it (Ding et al., Centripetal SGD, CVPR
2019, eq. 3 with infinite strength); momentum included.

Both are done. *Gradients* are averaged once at the end of each backward pass: clipping, loss scaling and the optimizer see the
gradient of the tied network, and what an optimizer keeps for each element (momentum, second moments) is tied as well. An optimizer
that treats equal elements alike then leaves the members identical. The *projection after the step* does not count on that. It
covers batch-norm statistics, optimizers that round or mix elements in their own way, gradients that came without a backward pass
and weights that were loaded or replaced. On a tied module it changes no bit (:mod:`pdc_fx.passes.means`), so a step that a
gradient scaler skips, frozen parameters and a second call are harmless.

When members are held, when clusters are formed, and whether members are drawn together meanwhile is the method's
(:mod:`pdc_fx.passes.methods`). Where they are drawn (``csgd``), the pull is added to gradients as they are: gradients that a scaler has
multiplied leave little of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError, PdcError, require_kind
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import merged_axes, named_tensors, tensor_of
from pdc_fx.passes.base import Pass
from pdc_fx.passes.cluster import recluster
from pdc_fx.passes.means import ClusterMeans
from pdc_fx.passes.methods import Method, method_of
from pdc_fx.passes.tied import Residual, require_tied, residual, tied_axes
from pdc_fx.trace import require_usable


@dataclass(frozen=True)
class TieClusters(Pass[nn.Module, "Tying"]):
    """Tying as a pass: module -> the :class:`Tying` that keeps it tied."""

    plan: ClusterPlan
    mode: str | Method = "pdc"
    total_steps: int | None = None

    def requires(self, value: nn.Module) -> None:
        require_usable(value)
        require_kind(self.plan, ClusterPlan, "a ClusterPlan", "ClusterPlan.from_json reads one")
        require_kind(self.total_steps, (int, NoneType), "a whole number of total_steps", "count the optimizer's steps")
        tensors = named_tensors(value)
        for axis in merged_axes(self.plan):
            if hasattr(tensor_of(tensors, axis), "placements"):  # a DTensor
                raise InputError(
                    "the model's parameters are sharded over processes: a cluster's filters may lie on several",
                    where=f"'{axis.tensor}'",
                    hint="use plain data parallelism (DistributedDataParallel)",
                )
            if tensor_of(tensors, axis).is_inference():
                raise InputError(
                    "the model was made in inference mode: its tensors cannot change",
                    where=f"'{axis.tensor}'",
                    hint="make it outside torch.inference_mode(), or tie copy.deepcopy(model)",
                )

    def call(self, value: nn.Module) -> Tying:
        return Tying(value, self.plan, self.mode, total_steps=self.total_steps)

    def ensures(self, value: nn.Module, result: Tying) -> None:
        if result.final:
            require_tied(value, result.plan)


class Tying:
    """Keeps a live module tied. Shapes never change, so optimizer, EMA, DDP and checkpoints go on as they are.

    Made by :func:`pdc_fx.tie`. Call :meth:`step` after each optimizer step, :meth:`snap` once before the rewrite. While it lives the
    gradients of tied filters are averaged; :meth:`close`, or tying the same model again, ends that.

    Attributes:
        plan: the plan to reach; its clusters may be formed anew from the weights until they are final.
        current: the plan of the last round (everything separate before the first).

    >>> from pdc_fx.passes.analysis import AnalyzeDependencies
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    >>> groups = AnalyzeDependencies(torch.zeros(1, 3, 8, 8))(net).groups
    >>> tying = Tying(net, ClusterPlan(groups, (np.array([0, 0, 1, 1]),)), "hard")
    >>> _ = nn.init.normal_(net[0].weight)  # a step of an optimizer that knows nothing of clusters
    >>> tying.step()
    >>> bool((net[0].weight[0] == net[0].weight[1]).all()), float(tying.residual())
    (True, 0.0)
    """

    def __init__(
        self, model: nn.Module, plan: ClusterPlan, mode: str | Method = "pdc", *, total_steps: int | None = None
    ) -> None:
        self.plan, self.method = plan, method_of(mode)
        self._schedule = self.method.schedule(total_steps)
        self.current = plan.with_clusters(np.arange(g.channels) for g in plan.groups.groups) if self._schedule else plan
        self._model = model
        self._steps = 0
        self._watching = True
        self._watched: dict[str, tuple[Tensor, Callable[[], None]]] = {}
        weakref.finalize(self, _unwatch, self._watched).atexit = False
        self._pending = _NONE
        self._total_steps = total_steps
        if (before := _TYINGS.get(model)) is not None and (earlier := before()) is not None:
            earlier.close()  # or it would go on averaging inside of other clusters
        _TYINGS[model] = weakref.ref(self)
        self._final = self.method.held and not self._schedule
        self._bind()
        self._after_update()

    @property
    def final(self) -> bool:
        """Whether the clusters are fixed and held."""
        return self._final

    @property
    def _held(self) -> bool:
        """Whether the members of the present clusters are identical and stay so."""
        return self._final or self.method.held

    def step(self) -> None:
        """Call after every ``optimizer.step()``."""
        self._steps += 1
        share = self._schedule.get(self._steps)
        if share is not None:
            self._reconstruct(share)
        else:
            self._after_update()

    def snap(self) -> ClusterPlan:
        """Make every cluster identical, bit for bit, and give the plan that is now exact."""
        if not self._final and self._schedule:
            self._reconstruct(1.0)
        self._final = True
        self._after_update()
        require_tied(self._model, self.plan)
        return self.plan

    def residual(self) -> Residual:
        """How far the model is from being tied by the clusters of the last reconstruction."""
        return residual(self._model, self.current)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands and which clusters are held; plain values, for a checkpoint."""
        return {
            "mode": self.method.name,
            "total_steps": self._total_steps,
            "steps": self._steps,
            "final": self._final,
            "plan": self.plan.to_json(),
            "current": self.current.to_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the model's own state must have been restored before.

        Raises:
            InputError: it is none, or that of another mode, number of steps or model; nothing has changed then.
        """
        try:
            steps, final = int(state["steps"]), bool(state["final"])
            plan, current = (ClusterPlan.from_json(state[name]) for name in ("plan", "current"))
            of = {name: state[name] for name in ("mode", "total_steps")}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"this is no state of a tying: {type(error).__name__} {error}", hint="give what state_dict() gave"
            ) from error
        if of != {"mode": self.method.name, "total_steps": self._total_steps}:
            raise InputError(
                f"the state is of mode '{of['mode']}' and {of['total_steps']} steps, not of '{self.method.name}' and {self._total_steps}",
                hint="tie with the mode and the total_steps of the run that is resumed",
            )
        if plan.groups.digest() != self.plan.groups.digest():
            raise InputError("the state belongs to another model: its channel groups differ")
        self._steps, self._final, self.plan, self.current = steps, final, plan, current
        self._bind()
        self._watch()

    def close(self) -> None:
        """Stop averaging gradients."""
        self._watching = False
        _unwatch(self._watched)

    def _reconstruct(self, share: float) -> None:
        """Cluster the present weights, ``share`` of the way to the final widths, and set each filter to its centroid."""
        self.current = agreed_plan(lambda: recluster(self._model, self.plan, share))
        if share >= 1.0:
            self.plan, self._final = self.current, True
        self._bind()
        self._means.project(named_tensors(self._model))
        self._watch()

    def _bind(self) -> None:
        """Take up the clusters of the last reconstruction."""
        tensors = named_tensors(self._model)
        axes = tied_axes(self.current)
        for axis in axes:
            tensor_of(tensors, axis)
        self._axes = axes
        self._roles = {axis.tensor: axis.role for axis in axes}
        self._means = ClusterMeans(axes)

    def _after_update(self) -> None:
        """Weights have changed, or may have."""
        tensors = named_tensors(self._model)
        for axis in self._axes:
            tensor_of(tensors, axis)  # a layer may have been fused or replaced
        if self._held:
            self._means.project(tensors)
        self._watch()

    def _watch(self) -> None:
        """Notice gradients of all tied parameters: of those, too, that were unfrozen or replaced since the last step."""
        if not self._watching or not (self._held or self.method.pull):
            return
        tensors = named_tensors(self._model)
        for name in self._roles:
            tensor = tensors[name]
            watched, remove = self._watched.get(name, (None, None))
            if watched is tensor or not (tensor.requires_grad and tensor.is_leaf):
                continue
            if remove is not None:
                remove()
            handle = tensor.register_post_accumulate_grad_hook(_notifier(self))  # type: ignore[no-untyped-call]
            self._watched[name] = tensor, handle.remove

    def noticed(self) -> None:
        """A tied parameter has its gradient: average those of all when the backward pass is over. One that raised never is."""
        task = torch._C._current_graph_task_id()
        if self._pending != task:
            self._pending = task
            after_backward(lambda: after_backward(self._average_gradients))

    def _average_gradients(self) -> None:
        """Inside the present clusters, of which a tensor may have left since it was first watched."""
        self._pending = _NONE
        tied = {name: tensor for name, (tensor, _) in self._watched.items() if name in self._roles}
        gradients = {name: t.grad for name, t in tied.items() if t.grad is not None and t.grad.layout == torch.strided}
        self._means.average(gradients)
        if gradients and not self._held:  # an optimizer inside of the backward pass leaves none
            self._pull({name: tied[name].detach() for name in gradients}, gradients)

    @torch.no_grad()
    def _pull(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Add ``eps (F - mean F)`` to each gradient."""
        centroids = {name: tensor.clone() for name, tensor in tensors.items()}
        self._means.average(centroids)
        strengths = [
            self.method.pull * (1.0 if self._roles[name] == "producer" else self.method.rest) for name in tensors
        ]
        deviations = torch._foreach_sub(list(tensors.values()), list(centroids.values()))
        torch._foreach_mul_(deviations, strengths)
        torch._foreach_add_([gradients[name] for name in tensors], deviations)


_NONE = -1  # no backward pass
_TYINGS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Tying]] = weakref.WeakKeyDictionary()
"""Model -> what keeps it tied; another tying takes its place."""


def _notifier(tying: Tying) -> Callable[[Tensor], None]:
    """A hook that does not keep ``tying`` alive, and with it the model."""
    reference = weakref.ref(tying)

    def notice(_: Tensor) -> None:
        if (found := reference()) is not None:
            found.noticed()

    return notice


def _unwatch(watched: dict[str, tuple[Tensor, Callable[[], None]]]) -> None:
    for _, remove in watched.values():
        remove()
    watched.clear()


def after_backward(work: Callable[[], None]) -> None:
    """Do ``work`` when the present backward pass is over, after what was queued for that moment before.

    DistributedDataParallel ends its all-reduce at that moment, and queues this while the pass goes on. Work that must come after it
    is queued from work that was queued: it then stands behind all that came in during the pass.
    """
    torch.autograd.Variable._execution_engine.queue_callback(work)


def agreed_plan(make: Callable[[], ClusterPlan]) -> ClusterPlan:
    """The plan that ``make`` gives in the first process, in all that train together (``torch.distributed``).

    Raises:
        PdcError: ``make`` raised in the first process; the others, which wait for its plan, say so.
    """
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return make()
    shared = ["", ""]
    try:
        if group.get_rank() == 0:
            shared = [make().to_json(), ""]
    except Exception as error:
        shared = ["", f"{error}"]
        raise
    finally:
        group.broadcast_object_list(shared, src=0)
    if shared[1]:
        raise PdcError(f"the first process ended with an error: {shared[1]}")
    return ClusterPlan.from_json(shared[0])
