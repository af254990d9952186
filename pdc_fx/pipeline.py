"""The passes put together: what ``import pdc_fx`` offers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pdc_fx.artifacts import Compressed
from pdc_fx.data import ImageData, batches_per_epoch, sample_images
from pdc_fx.directory import CHECKPOINT
from pdc_fx.distill import Observer, Processes, TiedTraining, TrainOptions, accuracy, logits_of, require_board
from pdc_fx.distill.checkpoints import Checkpoints, weights_digest
from pdc_fx.errors import InputError, TraceError, require_kind
from pdc_fx.export.pages.model_graph import ModelGraph, model_graph
from pdc_fx.ir import ChannelGroups, ClusterPlan
from pdc_fx.options import Start
from pdc_fx.passes.allocation import Allocation, PlanClusters
from pdc_fx.passes.analysis import AnalyzeDependencies
from pdc_fx.passes.budget import Rounding, RoundTo
from pdc_fx.passes.calibrate import RIDGE, UNFITTED, Calibrate
from pdc_fx.passes.fold import Fold
from pdc_fx.passes.methods import HARD, Method, method_of
from pdc_fx.passes.rewrite import ChannelAddition
from pdc_fx.passes.tie import TieClusters, Tying, agreed_plan
from pdc_fx.trace import Inputs, as_arguments, copied, looking_at


def analyze(model: nn.Module, example_inputs: Inputs, *, frozen: str | Iterable[str] = ()) -> ChannelGroups:
    """Find out which channels are coupled, which may replace each other, and which must stay and why.

    Args:
        model: any module; it runs once in eval mode and is not changed.
        example_inputs: a tensor, or a tuple of call arguments.
        frozen: names or patterns (``layer4.*``) of modules whose channels stay.

    Raises:
        TraceError: the model does not run on these inputs.
        InputError: a name or pattern in ``frozen`` meets no module.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> groups = analyze(net, torch.zeros(1, 3, 8, 8))
    >>> [(g.name, g.channels) for g in groups.groups], groups.frozen[0].reason
    ([('0', 8)], 'is an output of the model')
    """
    return AnalyzeDependencies(example_inputs, frozen)(model).groups


def inspect(model: nn.Module, example_inputs: Inputs, *, frozen: str | Iterable[str] = ()) -> ModelGraph:
    """The result of :func:`analyze` (``.groups``) together with the operators it was found on, to be looked at.

    Args:
        model: any module; it runs once in eval mode and is not changed.
        example_inputs: a tensor, or a tuple of call arguments.
        frozen: names or patterns (``layer4.*``) of modules whose channels stay.

    Raises:
        TraceError: the model does not run on these inputs.
        InputError: a name or pattern in ``frozen`` meets no module.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> graph = inspect(net, torch.zeros(1, 3, 8, 8))
    >>> graph.nodes[2].function, dict(graph.nodes[2].groups)
    ('torch.nn.functional.relu', {0: 8})
    """
    return model_graph(AnalyzeDependencies(example_inputs, frozen)(model).solution)


def plan(
    model: nn.Module,
    groups: ChannelGroups,
    *,
    flops_reduction: float | None = None,
    params_reduction: float | None = None,
    latency_reduction: float | None = None,
    allocation: Allocation = "global",
    round_to: RoundTo = 1,
    provider: str = "cpu",
    latency_table: Path | None = None,
    min_channels: int = 1,
) -> ClusterPlan:
    """Decide which channels of each group become one.

    Args:
        model: the model whose weights say which filters are alike; it is not changed.
        groups: the result of :func:`analyze` for this model.
        flops_reduction: share of multiply-accumulates to remove, 0 to 1; met within 0.01.
        params_reduction: the same for parameters.
        latency_reduction: the same for the time of a run in ONNX Runtime with the batch size of the example inputs, foretold from a table
            of layer times and then measured: met within 0.05. Give one of the three.
        allocation: ``global`` merges where it costs least per multiply-accumulate saved, ``uniform`` keeps the same share
            of every group.
        round_to: widths are multiples of this where a group is large enough; ``auto`` (:mod:`pdc_fx.passes.budget`) takes what the
            provider's hardware computes in one block, and less for narrow groups.
        provider: what the network will run on, a key of :data:`pdc_fx.export.session.PROVIDERS`, or ``auto`` for the best that works here.
        latency_table: file of layer times, made or completed where it speaks of this machine; one in the cache directory by default.
        min_channels: no group gets smaller.

    Raises:
        PlanError: the reduction cannot be met; the message says the largest that can.
        ArtifactError: the table is damaged.
        InputError: an option is out of range, the groups are those of another model, or weights are not finite; the table was measured with
            something else, or lacks what only another machine can measure.
        NothingToMergeError: there is no group.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> plan(net, analyze(net, torch.zeros(1, 3, 8, 8)), flops_reduction=0.5).widths
    {0: 4}
    """
    with _planner(
        model,
        groups,
        flops_reduction=flops_reduction,
        params_reduction=params_reduction,
        latency_reduction=latency_reduction,
        allocation=allocation,
        round_to=round_to,
        provider=provider,
        latency_table=latency_table,
        min_channels=min_channels,
    ) as planner:
        return planner(groups)


@contextmanager
def _planner(
    model: nn.Module,
    groups: ChannelGroups,
    *,
    flops_reduction: float | None,
    params_reduction: float | None,
    latency_reduction: float | None,
    allocation: Allocation,
    round_to: RoundTo,
    provider: str,
    latency_table: Path | None,
    min_channels: int = 1,
) -> Iterator[PlanClusters]:
    """The planner of a budget; where that is one of latency, the networks it has timed are kept as long as it is in use."""
    if provider == "auto":
        from pdc_fx.export.session import choose_provider

        provider = choose_provider().name
    require_kind(
        groups,
        ChannelGroups,
        "ChannelGroups",
        "pdc_fx.analyze(model, example_inputs) gives them; the model comes first",
    )
    if latency_table is not None and latency_reduction is None:
        raise InputError(
            "a table of layer times is for a budget of latency",
            hint="give latency_reduction, or leave latency_table out",
        )
    with ExitStack() as stack:
        latency = None
        if latency_reduction is not None:
            from pdc_fx.export.timing.latency import Latency

            latency = stack.enter_context(Latency(model, groups, provider=provider, table=latency_table))
        yield PlanClusters(
            model,
            flops_reduction=flops_reduction,
            params_reduction=params_reduction,
            latency_reduction=latency_reduction,
            latency=latency,
            allocation=allocation,
            rounding=Rounding.of(round_to, provider),
            min_channels=min_channels,
        )


def fold(
    model: nn.Module,
    groups: ChannelGroups,
    *,
    flops_reduction: float | None = None,
    params_reduction: float | None = None,
    latency_reduction: float | None = None,
    allocation: Allocation = "global",
    round_to: RoundTo = 1,
    provider: str = "cpu",
    latency_table: Path | None = None,
    images: Tensor | None = None,
) -> tuple[nn.Module, ClusterPlan]:
    """Tie ``model`` without training and without data: filters are set to the means of their clusters, batch norms repaired.

    Args:
        model: any module; a copy of it is tied.
        groups: the result of :func:`analyze` for this model, which is not changed.
        flops_reduction, params_reduction, latency_reduction, allocation, round_to, provider, latency_table: as for :func:`plan`.
        images: shape ``(N, C, H, W)``, prepared as for the model: batch-norm statistics are then estimated from them.

    Returns:
        A tied copy and its plan, for :func:`rewrite` or for :func:`tie` with mode ``hard``.

    Raises:
        PlanError: the reduction cannot be met.
        InputError: the images do not fit or are not finite.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> example = torch.zeros(1, 3, 8, 8)
    >>> tied, clusters = fold(net, analyze(net, example), flops_reduction=0.5)
    >>> rewrite(tied, clusters, example)[3]
    Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    with _planner(
        model,
        groups,
        flops_reduction=flops_reduction,
        params_reduction=params_reduction,
        latency_reduction=latency_reduction,
        allocation=allocation,
        round_to=round_to,
        provider=provider,
        latency_table=latency_table,
    ) as planner:
        return Fold(groups, planner, images)(model)


def calibrate(
    model: nn.Module,
    groups: ChannelGroups,
    images: Tensor,
    *,
    flops_reduction: float | None = None,
    params_reduction: float | None = None,
    latency_reduction: float | None = None,
    allocation: Allocation = "global",
    round_to: RoundTo = 1,
    provider: str = "cpu",
    latency_table: Path | None = None,
    ridge: float = RIDGE,
) -> tuple[nn.Module, ClusterPlan]:
    """Tie ``model`` without training, by unlabelled images: channels are chosen and their readers refitted by least squares.

    Args:
        model: any module; a copy of it is tied.
        groups: the result of :func:`analyze` for this model, which is not changed.
        images: shape ``(N, C, H, W)``, prepared as for the model; a few hundred. They run as one batch, without gradients.
        flops_reduction, params_reduction, latency_reduction, allocation, round_to, provider, latency_table: as for :func:`plan`.
        ridge: weight of the penalty on what a refit changes, relative to the mean square of what a reader reads. ``inf`` keeps the
            weights of the channels that stay, and sets biases and statistics alone: what to begin training with.

    Returns:
        A tied copy and its plan, for :func:`rewrite` or for :func:`tie` with mode ``hard``.

    Raises:
        PlanError: the reduction cannot be met.
        InputError: the images do not fit or are not finite.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> images = torch.randn(16, 3, 8, 8)
    >>> tied, clusters = calibrate(net, analyze(net, images[:1]), images, flops_reduction=0.5)
    >>> rewrite(tied, clusters, images[:1])[2]
    Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    with _planner(
        model,
        groups,
        flops_reduction=flops_reduction,
        params_reduction=params_reduction,
        latency_reduction=latency_reduction,
        allocation=allocation,
        round_to=round_to,
        provider=provider,
        latency_table=latency_table,
    ) as planner:
        return Calibrate(groups, images, planner, ridge)(model)


def tie(model: nn.Module, plan: ClusterPlan, *, mode: str | Method = "pdc", total_steps: int | None = None) -> Tying:
    """Keep ``model`` tied while *your* loop trains it: call ``.step()`` after each ``optimizer.step()``, ``.snap()`` at the end.

    Args:
        model: the module that is trained; its filters are changed in place, its shapes never.
        plan: which channels are to become one, as :func:`plan` gives it.
        mode: the method: ``hard`` ties from the start; ``pdc`` reconstructs filters from clusters at intervals, at a rising rate;
            ``progressive`` merges step by step and stays tied in between; ``csgd`` draws filters to their centroids.
        total_steps: the number of optimizer steps in the run, for methods that work in rounds (``pdc``, ``progressive``).

    Raises:
        InputError: the plan does not belong to this model.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> tying = tie(net, plan(net, analyze(net, torch.zeros(1, 3, 8, 8)), flops_reduction=0.5), mode="hard")
    >>> float(tying.residual())
    0.0
    """
    return TieClusters(plan, mode, total_steps)(model)


def rewrite(model: nn.Module, plan: ClusterPlan, example_inputs: Inputs, *, verify: bool = True) -> nn.Module:
    """Remove all but one channel of each cluster, exactly: the readers' input slices are summed.

    Args:
        model: tied by ``plan``; it is not changed.
        plan: which channels become one, as ``tying.snap()`` gives it.
        example_inputs: a tensor, or a tuple of call arguments, of the shapes that ``plan`` was made on.
        verify: compare tied and compact in float64 and refuse above a relative error of 1e-9.

    Returns:
        The smaller network: of the same class where its forward works at the new widths, else a ``torch.fx.GraphModule``.

    Raises:
        ExactnessError: the model is not tied, or the measured error is too large.
        RewriteError: a size is written into the forward pass where it cannot be edited.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> example = torch.zeros(1, 3, 8, 8)
    >>> clusters = tie(net, plan(net, analyze(net, example), flops_reduction=0.5), mode="hard").snap()
    >>> rewrite(net, clusters, example)[2]
    Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    return ChannelAddition(plan, example_inputs, verify)(model)


def compress(
    model: nn.Module,
    example_inputs: Inputs,
    train_data: ImageData,
    *,
    flops_reduction: float | None = None,
    params_reduction: float | None = None,
    latency_reduction: float | None = None,
    allocation: Allocation = "global",
    round_to: RoundTo = "auto",
    provider: str = "cpu",
    latency_table: Path | None = None,
    frozen: str | Iterable[str] = (),
    mode: str | Method | None = None,
    start: Start | None = None,
    calibration_images: int | None = None,
    teacher: nn.Module | None = None,
    options: TrainOptions | None = None,
    hold_out: int | None = None,
    directory: Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    source: dict[str, Any] | None = None,
) -> Compressed:
    """The whole way: analyse, plan, train tied under distillation (or fold, or calibrate), rewrite, measure.

    Under ``torchrun`` or ``accelerate launch`` all processes call it alike; each trains on its share of every batch and gets the same
    result, and the first one writes.

    Args:
        model: a trained classifier of images; it is not changed.
        example_inputs: a tensor, or a tuple of call arguments: one image, shape ``(1, C, H, W)``.
        train_data: as :func:`pdc_fx.data.open_data` gives it. Its test images are looked at once, at the end.
        flops_reduction, params_reduction, latency_reduction, allocation, round_to, provider, latency_table: as for :func:`plan`.
        frozen: as for :func:`analyze`.
        mode: the method of tying, as for :func:`tie`; ``hard`` where not given.
        start: what training starts from: ``model`` itself, or what :func:`fold` or :func:`calibrate` make of it, whose clusters are kept.
            With these two ``options.epochs`` may be 0: nothing is trained. ``calibrate`` with mode ``hard``, else ``model``, by default.
        calibration_images: how many training images, of all classes and not augmented, ``calibrate`` sees; 512 small ones where not given.
        teacher: gives the soft targets; ``model`` itself where not given.
        options: of the training; :class:`TrainOptions` by default.
        hold_out: training images kept aside for the accuracy after each epoch (a tenth, at most 5,000, by default).
        directory: where ``metrics.jsonl`` and a checkpoint are written while training.
        resume: go on from that checkpoint.
        observer: is told of every step and epoch.
        source: remembered in the recipe of :func:`pdc_fx.save`.

    Raises:
        InputError: the model's outputs do not fit the data's classes.
        PdcError: as its parts do.

    >>> import torch
    >>> from pdc_fx.data import open_data
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> options = TrainOptions(epochs=0)  # nothing is trained: filters are folded
    >>> found = compress(
    ...     net, torch.zeros(1, 1, 8, 8), open_data("digits"), flops_reduction=0.5, start="fold", options=options
    ... )
    >>> found.model[0], found.exactness.passed, sorted(found.accuracy)
    (Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1)), True, ['compact', 'teacher', 'tied'])
    """
    require_kind(
        train_data, ImageData, "an ImageData", "pdc_fx.data.open_data opens one; for a loop of your own take pdc_fx.tie"
    )
    options = options or TrainOptions()
    method = method_of(mode or "hard")
    if start is None:
        start = "calibrate" if method == HARD else "model"
    _require_agreeing(options, method, start, calibration_images, directory if resume else None)
    require_board(options)
    require_classes(model, as_arguments(example_inputs), train_data)
    if teacher is not None:
        require_classes(teacher, as_arguments(example_inputs), train_data, "teacher")
    inputs = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, as_arguments(example_inputs))
    forms = {} if teacher is None else {"original": copied(model)}
    tied, teacher = copied(model).cpu(), copied(model if teacher is None else teacher)
    processes = Processes.of_environment()
    budget: dict[str, Any] = {
        "flops_reduction": flops_reduction,
        "params_reduction": params_reduction,
        "latency_reduction": latency_reduction,
        "allocation": allocation,
        "round_to": round_to,
        "provider": provider,
        "latency_table": latency_table,
    }
    kept_aside = min(5000, len(train_data.train) // 10) if hold_out is None else hold_out
    data, held_out = train_data.hold_out(kept_aside) if kept_aside else (train_data, None)

    def samples() -> Tensor:
        count = calibration_images or min(default_calibration_images(data.image_shape), len(data.train))
        return sample_images(data, count)

    def begun(network: nn.Module) -> tuple[nn.Module, ClusterPlan]:
        groups = analyze(network, inputs, frozen=frozen)
        if start == "model":
            return network, plan(network, groups, **budget)
        if start == "fold":
            return fold(network, groups, **budget)
        return calibrate(network, groups, samples(), **budget, ridge=UNFITTED if options.epochs else RIDGE)

    def tested(network: nn.Module) -> float:
        right = accuracy(network.to(processes.device), data.test, data, processes=processes)
        network.cpu()
        return right

    origin = {"start": start, "calibration images": calibration_images, "weights": weights_digest(model.state_dict())}
    if processes.first:
        tied, made = begun(tied)
    clusters = agreed_plan(lambda: made)
    if start != "model":
        processes.share_weights(tied)
    final, metrics = clusters, list[dict[str, Any]]()
    if options.epochs:
        training = TiedTraining(
            tied, teacher, clusters, data, held_out, options, method, directory, processes=processes, origin=origin
        )
        if observer is not None:
            training.observer = observer
        final, metrics = training.run(resume=resume)
        short = batches_per_epoch(len(data.train), options.batch_size) * options.epochs < SHORT
        if start == "calibrate" and short and held_out is not None and latency_reduction is None:
            untrained, _ = calibrate(copied(model).cpu(), clusters.groups, samples(), **budget, ridge=RIDGE)
            metrics.append({"kind": "untrained", "accuracy": accuracy(untrained, held_out, data)})
    tied = tied.cpu().eval()
    addition = ChannelAddition(final, inputs)
    compact = addition(tied).eval()
    assert addition.comparison is not None
    return Compressed(
        model=compact,
        tied=tied,
        plan=final,
        example_inputs=inputs,
        exactness=addition.comparison,
        accuracy={
            name: tested(m) for name, m in (forms | {"teacher": teacher, "tied": tied, "compact": compact}).items()
        },
        metrics=metrics,
        source=source or {},
        original=model,
    )


def _require_agreeing(
    options: TrainOptions, method: Method, start: str, calibration_images: int | None, resumed: Path | None
) -> None:
    """Raise :class:`InputError` where what was asked of :func:`compress` does not go together."""
    if start not in get_args(Start):
        raise InputError(f"unknown start {start!r}", hint=f"use {', '.join(map(repr, get_args(Start)))}")
    if start == "model" and options.epochs == 0:
        raise InputError("training takes at least one epoch", hint="start 'calibrate' or 'fold' needs none")
    if start != "model" and method.rounds:
        raise InputError(
            f"mode '{method.name}' forms clusters of its own and cannot keep those of start '{start}'",
            hint="use 'hard'",
        )
    if calibration_images is not None and start != "calibrate":
        raise InputError(
            f"calibration_images are for start 'calibrate', and this is '{start}'", hint="leave one of them out"
        )
    if resumed is not None and not options.epochs and Checkpoints(resumed / CHECKPOINT).files():
        raise InputError(
            "an interrupted training lies here, and without epochs it would be thrown away",
            where=str(resumed / CHECKPOINT),
            hint="resume it with the epochs it was begun with, or begin anew (--overwrite)",
        )


SHORT = 1000
"""Steps of training up to which it is compared with what a refit without training gives, which takes a few steps' time."""


def default_calibration_images(shape: tuple[int, ...]) -> int:
    """As many as have about 16 million numbers, which bounds the memory of a forward pass: 64 to 512.

    >>> default_calibration_images((3, 32, 32)), default_calibration_images((3, 224, 224))
    (512, 111)
    """
    return max(64, min(512, 2**24 // prod(shape)))


def require_classes(model: nn.Module, inputs: tuple[Any, ...], data: ImageData, name: str = "model") -> None:
    """Raise :class:`InputError` unless the model, which messages call ``name``, and the data speak of the same images and classes."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds and torch.float32 not in kinds:
        raise InputError(
            f"images come in float32, and the {name}'s weights are {str(kinds.pop()).removeprefix('torch.')}",
            hint="give model.float(); options.amp says in what precision training computes",
        )
    image = next((a for a in inputs if isinstance(a, Tensor)), None)
    if image is not None and tuple(image.shape[1:]) != data.image_shape:
        raise InputError(
            f"the images are {'x'.join(map(str, data.image_shape))}, the {name}'s input is {'x'.join(map(str, image.shape[1:]))}",
            where=data.name,
            hint="pass --input with the shape of the images",
        )
    with looking_at(model, *inputs) as args:
        try:
            logits = logits_of(model(*args))
        except Exception as error:  # a model may refuse in any way
            raise TraceError(
                f"the {name} does not take this input: {str(error) or type(error).__name__}",
                hint=f"the images are {'x'.join(map(str, data.image_shape))}: choose a {name} that takes them, or pass --input",
            ) from error
    if logits.dim() != 2 or logits.shape[1] != len(data.classes):
        raise InputError(
            f"the {name} gives {tuple(logits.shape)[1:]} scores per image, the data has {len(data.classes)} classes",
            where=data.name,
            hint=f"pass --num-classes {len(data.classes)}, or other data" if name == "model" else "choose another",
        )
