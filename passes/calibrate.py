"""Groups + unlabelled images -> tied module + plan, without training: channels are chosen, and their readers refitted, by least squares.

Let a reader give ``Y = W X``, the rows of ``X`` its input channels (under every tap of its kernel) over positions of real images. Keep
the channels ``S``. The reader that comes nearest on those is the ridge regression

    W' = argmin |Y - W' X_S|^2 + ridge |W' - W_S|^2

and channel addition is the special case in which ``W'`` is ``W R`` with ``R`` the 0/1 matrix of the clusters (GRAIL, 2026). With
``ridge`` infinite the weights stay as they are, ``W' = W_S``: what training had best begin with (:data:`UNFITTED`).

**Choice.** Backward elimination. With ``P = (X X^T)^-1`` over the channels that are left and ``A`` the refitted weights, to drop channel
``j`` adds ``|A_j|^2 / P_jj`` to the squared error and changes ``A -= A_j P_j / P_jj``, ``P -= P_j^T P_j / P_jj``: the optimal brain surgeon
(Hassibi and Stork, 1993) with channels in place of weights. Here all taps of a kernel share one ``P``. What a group costs is the sum
over its readers, each relative to the energy of what it gives; :class:`~pdc_fx.passes.allocation.PlanClusters` spends the budget
where that costs least, with regard to the weights that are left to refit (:data:`CAPACITY`).

**Tie.** A channel that goes takes on the filters of the kept channel that it resembles most, so that the module is tied as any
other. The first channel of a cluster is read with the refitted slice, the others with zeros: their sum is what remains.

**Refit.** The tied module runs once. Each reader is refitted when its turn comes, to what it gave in the dense network, from what it is
given now: errors made before it are corrected as far as it can. Each batch norm takes the statistics of what it is given.

Readers that are no plain convolution or linear layer, or whose weight has a second use, keep their weights: plain channel addition.
Groups without a reader of that kind, or whose clusters must be of one size, are clustered by their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError
from pdc_fx.ir import ChannelGroup, ChannelGroups, ClusterPlan, Integers, first_appearance
from pdc_fx.passes.allocation import PlanClusters
from pdc_fx.passes.axes import merged_axes, named_tensors, stand_ins
from pdc_fx.passes.base import Pass
from pdc_fx.passes.cluster import Bloc, Floats
from pdc_fx.passes.statistics import Norm, Reader, Watch, require_images, run_watched
from pdc_fx.passes.tied import require_tied
from pdc_fx.trace import copied, require_usable

SAMPLES = 2**15
"""The most positions over all images at which a reader is looked at."""

RIDGE = 1e-4
"""Of the choice, and of a refit that nothing follows; relative to the mean square of what a reader reads."""

UNFITTED = float("inf")
"""The ridge that keeps weights. A refit uses faint directions of the inputs for what went, which training has to undo first: after 4 epochs
of ResNet-20 at half of its MACs (SGD in the metric of the inputs) the loss was 1.37 from the refit, 1.32 with ridge 0.1, 1.26 without."""

CAPACITY = 0.5
"""How much the weights that go count in what a removal costs; 0, 0.25, 0.5 and 1 were tried on images held out from training."""

TINY = 1e-30


@dataclass(frozen=True)
class Elimination:
    """The order in which the channels of a group go.

    Attributes:
        order: shape ``(channels,)``; the first goes first.
        costs: shape ``(channels - 1,)``; what each removal adds to the relative error, summed over readers.
        likeness: shape ``(channels, channels)``; the cosine between channels, summed over readers.
    """

    order: Integers
    costs: Floats
    likeness: Floats

    @property
    def channels(self) -> int:
        return len(self.order)

    def stand_in(self, width: int) -> Integers:
        """Shape ``(channels,)``: the channel that stands for each when ``width`` remain."""
        kept = np.sort(self.order[self.channels - width :])
        chosen: Integers = kept[self.likeness[:, kept].argmax(1)]
        chosen[kept] = kept
        return chosen

    def cut(self, width: int) -> Integers:
        """The clusters when ``width`` remain."""
        return first_appearance(self.stand_in(width))


class DenseStatistics(Watch):
    """What the readers of the dense network get and give.

    Attributes:
        grams: reader -> shape ``(g, n, n)``; mean products of the inputs, over positions and taps, in float64.
        outputs: reader -> shape ``(samples, g, out / g)``.
    """

    def __init__(self, model: nn.Module, samples: int = SAMPLES) -> None:
        super().__init__(model, samples)
        self.grams: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def after(self, reader: Reader, output: Tensor) -> None:
        rows = reader.patches().permute(1, 0, 3, 2).flatten(1, 2)
        count = rows.shape[1]
        parts = (part.double() for part in torch.split(rows, max(1, 2**22 // rows[:, 0].numel()), dim=1))
        self.grams[reader.weight] = sum((p.mT @ p for p in parts), start=torch.zeros((), device=rows.device)) / count
        self.outputs[reader.weight] = reader.outputs(output)


def eliminate(readers: list[tuple[Tensor, Tensor]], ridge: float) -> tuple[Integers, Floats]:
    """The order in which channels go, and what each adds to the relative error.

    Args:
        readers: for each the mean products of its inputs ``(channels, channels)``, and its weights ``(rows, channels)``.

    >>> twins = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> order, costs = eliminate([(twins, torch.ones(1, 3, dtype=torch.float64))], 1e-9)
    >>> order.tolist()[1], [round(abs(float(c)), 3) for c in costs]
    (2, [0.0, 0.2, 0.8])
    """
    channels = len(readers[0][0])
    inverses, weights, energies = [], [], []
    for gram, weight in readers:
        damped = gram + (ridge * gram.diagonal().mean() + TINY) * torch.eye(channels).to(gram)
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(damped)))
        weights.append(weight.clone())
        energies.append(float(((weight @ gram) * weight).sum()) + TINY)
    gone = torch.zeros(channels, dtype=torch.bool, device=readers[0][0].device)
    order, costs = [], []
    for _ in range(channels):
        score = torch.zeros(channels).to(inverses[0])
        for inverse, weight, energy in zip(inverses, weights, energies, strict=True):
            score += weight.square().sum(0) / inverse.diagonal().clamp(min=TINY) / energy
        worst = int(score.masked_fill(gone, torch.inf).argmin())
        order.append(worst)
        costs.append(float(score[worst]))
        gone[worst] = True
        for inverse, weight in zip(inverses, weights, strict=True):
            row = inverse[worst] / inverse[worst, worst]
            weight -= torch.outer(weight[:, worst].clone(), row)
            inverse -= torch.outer(inverse[:, worst].clone(), row)
            for table in (weight, inverse, inverse.T):
                table[:, worst] = 0
    return np.asarray(order, dtype=np.int64), np.asarray(costs)


def elimination(group: ChannelGroup, tensors: Mapping[str, Tensor], dense: DenseStatistics) -> Elimination | None:
    """The elimination of one group; None where no reader of it was seen, or its clusters must be of one size."""
    readers = []
    for member in group.members:
        if member.role != "consumer" or member.dim != 1 or member.tensor not in dense.grams:
            continue
        gram = dense.grams[member.tensor]
        weight = tensors[member.tensor].detach().double()
        weight = weight.reshape(len(gram), -1, weight.shape[1], weight[0, 0].numel())
        places = torch.as_tensor(member.positions, device=weight.device)
        for g in range(len(gram)):  # a channel behind a flatten has several places, which count as positions
            products = torch.stack([gram[g][p][:, p] for p in places.T]).sum(0)
            readers.append((products, weight[g][:, places].movedim(1, 3).reshape(-1, group.channels)))
    if not readers or group.balance is not None:
        return None
    order, costs = eliminate(readers, RIDGE)
    norms = [gram.diagonal().clamp(min=TINY).sqrt() for gram, _ in readers]
    likeness = sum(gram / norm / norm[:, None] for (gram, _), norm in zip(readers, norms, strict=True))
    assert isinstance(likeness, Tensor)
    return Elimination(order, costs[:-1], likeness.cpu().numpy())


def ridge_regression(x: Tensor, y: Tensor, start: Tensor, ridge: float) -> Tensor:
    """The weights nearest to ``start``: ``argmin |y - x w^T|^2 + ridge mean(diag(x^T x)) |w - start|^2``.

    Args:
        x: shape ``(samples, d)``; y: ``(samples, out)``; start: ``(out, d)``.
    """
    if ridge == UNFITTED:
        return start
    samples, d = x.shape
    rest = y - x @ start.T
    damping = ridge * float(x.square().sum()) / d + TINY
    gram = x.T @ x if d <= samples else x @ x.T
    gram.diagonal().add_(damping)
    if d <= samples:
        change: Tensor = torch.linalg.solve(gram, x.T @ rest)
    else:
        change = x.T @ torch.linalg.solve(gram, rest)
    return start + change.T


class Refit(Watch):
    """Refits each reader and each batch norm of a tied module when its turn comes.

    Attributes:
        rows: (tensor, axis) -> the position whose filters each position has.
    """

    def __init__(
        self, model: nn.Module, plan: ClusterPlan, chosen: list[Integers], dense: DenseStatistics, ridge: float
    ) -> None:
        super().__init__(model, dense.samples)
        self._tensors, self._dense, self._ridge = named_tensors(model), dense, ridge
        self._axes = {(axis.tensor, axis.dim): axis for axis in merged_axes(plan)}
        self._before = {name: self._tensors[name].detach().clone() for name in dense.outputs}
        self.rows = stand_ins(plan.groups, chosen)

    def before(self, reader: Reader) -> None:
        name = reader.weight
        once = [self._dense.uses[n] == 1 for n in (name, reader.bias) if n is not None]
        if name not in self._before or not all(once):
            return
        weight = reader.matrix()
        axis = self._axes.get((name, 1))
        kept = np.arange(weight.shape[2]) if axis is None else axis.kept
        chosen = self.rows.get((name, 1), np.arange(weight.shape[2]))[kept]
        start = self._before[name].reshape(weight.shape)[:, :, chosen].flatten(2).double()
        x = reader.patches()[:, :, kept].flatten(2).double()
        y = self._dense.outputs[name].double()
        centre = name in self._dense.scale_free or reader.bias is not None
        x_mean, y_mean = (v.mean(0) if centre else torch.zeros_like(v[0]) for v in (x, y))
        fitted = torch.stack(
            [
                ridge_regression(x[:, g] - x_mean[g], y[:, g] - y_mean[g], start[g], self._ridge)
                for g in range(len(start))
            ]
        )
        whole = torch.zeros_like(weight)
        whole[:, :, kept] = fitted.reshape(*start.shape[:2], len(kept), -1).to(whole)
        rows = self.rows.get((name, 0), np.arange(len(reader.parameter)))
        reader.parameter.copy_(whole.reshape(reader.parameter.shape)[rows])
        if reader.bias is not None:
            bias = y_mean - torch.einsum("god,gd->go", fitted, x_mean)
            self._tensors[reader.bias].copy_(bias.reshape(-1)[rows])

    def norm(self, norm: Norm) -> None:
        norm.reestimate()


@torch.no_grad()
def copy_filters(model: nn.Module, plan: ClusterPlan, chosen: Sequence[Integers]) -> None:
    """Give each channel the filters of the one that stands for it: the module is then tied."""
    tensors = named_tensors(model)
    for group, stand_in in zip(plan.groups.groups, chosen, strict=True):
        for member in group.tied:
            tensor = tensors[member.tensor]
            to, source = (
                torch.as_tensor(p.reshape(-1)).to(tensor.device) for p in (member.positions, member.positions[stand_in])
            )
            tensor.index_copy_(member.dim, to, tensor.index_select(member.dim, source))


@dataclass(frozen=True)
class Calibrate(Pass[nn.Module, tuple[nn.Module, ClusterPlan]]):
    """Calibration as a pass: module -> a tied copy of it, and the plan.

    Attributes:
        images: ``(N, C, H, W)``, prepared as the model takes them; they run as one batch.
        planner: spreads the budget.
    """

    groups: ChannelGroups
    images: Tensor
    planner: PlanClusters
    ridge: float = RIDGE

    def requires(self, value: nn.Module) -> None:
        require_usable(value)
        require_images(self.images, self.groups)
        self.planner.requires(self.groups)
        if not self.ridge > 0:
            raise InputError(f"ridge must be positive, not {self.ridge}")

    def call(self, value: nn.Module) -> tuple[nn.Module, ClusterPlan]:
        tied = copied(value)
        tensors = named_tensors(tied)
        images = self.images.to(next(iter(tensors.values())).device)
        dense = DenseStatistics(tied)
        run_watched(tied, images, dense)
        for name, output in dense.outputs.items():
            if not bool(output.isfinite().all()):
                raise InputError(
                    "what the network computes on the calibration images is not finite",
                    where=f"'{name}'",
                    hint="look at its weights, at its running variances (below 0?) and at how the images are prepared",
                )
        found = [elimination(group, tensors, dense) for group in self.groups.groups]
        plan = self.planner.over(lambda blocs: [_eliminated(bloc, found) for bloc in blocs], CAPACITY)(self.groups)
        chosen = [
            representative if order is None else order.stand_in(plan.widths[i])
            for i, (representative, order) in enumerate(zip(plan.representatives, found, strict=True))
        ]
        refit = Refit(tied, plan, chosen, dense, self.ridge)
        copy_filters(tied, plan, chosen)
        if merged_axes(plan):
            run_watched(tied, images, refit)
            copy_filters(tied, plan, plan.representatives)
        return tied, plan

    def ensures(self, value: nn.Module, result: tuple[nn.Module, ClusterPlan]) -> None:
        require_tied(*result)


def _eliminated(bloc: Bloc, found: list[Elimination | None]) -> Bloc:
    """The bloc with the elimination of its group in place of Ward's tree, where there is one; both cost a share of the group."""
    first = found[bloc.members[0]]
    return bloc if first is None else replace(bloc, trees=(first,))
