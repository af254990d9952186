"""Tied training under distillation, on Hugging Face Accelerate.

The loss of a batch with labels ``y``, student logits ``s`` and teacher logits ``t`` (Hinton, Vinyals, Dean 2015, section 2):

    (1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))

The module that is trained is the user's own, at full width; :class:`~pdc_fx.passes.tie.Tying` follows each optimizer step.
Everything random is drawn anew per epoch from ``(seed, epoch)``, so that a run resumed at an epoch goes on bit for bit (on a CPU).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, RandomSampler

from pdc_fx.data import Augment, ImageData, ImageSet, collate, normalize
from pdc_fx.errors import ArtifactError, InputError, PdcError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.tie import Tying


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate of SGD with Nesterov momentum; warmed up over the first half epoch, then a cosine to 0.
        momentum, weight_decay: of SGD.
        alpha: weight of the distillation term, 0 to 1; temperature: its T.
        amp: ``bf16`` runs convolutions and matrix products in bfloat16 (autocast), ``no`` all in float32.
        channels_last: memory format of the network and the images.
        seed: of the order of images, augmentation and whatever the model draws.
        calibration_batches: training batches over which batch-norm statistics are estimated anew at the end.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    alpha: float = 0.9
    temperature: float = 4.0
    amp: Literal["bf16", "no"] = "bf16"
    channels_last: bool = True
    seed: int = 0
    calibration_batches: int = 50

    def __post_init__(self) -> None:
        checks = {
            "epochs must be at least 1": self.epochs >= 1,
            "batch_size must be at least 1": self.batch_size >= 1,
            "lr must be positive": 0 < self.lr < float("inf"),
            "momentum must be in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay must not be negative": self.weight_decay >= 0,
            "alpha must be in [0, 1]": 0 <= self.alpha <= 1,
            "temperature must be positive": self.temperature > 0,
            "amp must be 'bf16' or 'no'": self.amp in ("bf16", "no"),
        }
        for rule, holds in checks.items():
            if not holds:
                raise InputError(rule)


@dataclass(frozen=True)
class StepReport:
    """After a step: averages over the epoch so far, and where the run stands. ``accuracy`` is that on training images."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    lr: float
    macs: int
    residual: float | None


class Observer(Protocol):
    """Who wants to see the run (a progress bar)."""

    def on_step(self, report: StepReport) -> None: ...

    def on_epoch(self, record: dict[str, Any]) -> None: ...


@dataclass
class _Silent:
    def on_step(self, report: StepReport) -> None:
        return None

    def on_epoch(self, record: dict[str, Any]) -> None:
        return None


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float) -> Tensor:
    """The loss above, averaged over the batch.

    Args:
        student, teacher: logits, shape ``(N, classes)``.
        labels: int64, shape ``(N,)``.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(logits, logits, torch.tensor([0]), alpha=1.0, temperature=4.0))
    0.0
    """
    hard = nn.functional.cross_entropy(student, labels)
    log_p, log_q = (nn.functional.log_softmax(x / temperature, dim=1) for x in (teacher, student))
    soft = nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
    return (1 - alpha) * hard + alpha * soft


def logits_of(output: Any) -> Tensor:
    """The class scores in whatever a classifier returns (auxiliary heads come after, or under other names)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = output.get("logits", output.get("out"))
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"expected logits of shape (N, classes), the model returned a {type(output).__name__}")
    return output


def batches(
    images: ImageSet, size: int, data: ImageData, *, shuffle_seed: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches ``(float32 [B, C, H, W], int64 [B])``; augmented and shuffled where a seed is given."""
    augment = None if shuffle_seed is None else Augment(data.augmentation, shuffle_seed)
    for pixels, labels in _loader(images, size, shuffle_seed):
        yield normalize(augment(pixels) if augment else pixels, data.mean, data.std), labels


def _loader(images: ImageSet, size: int, shuffle_seed: int | None) -> DataLoader[tuple[Tensor, Tensor]]:
    sampler = None
    if shuffle_seed is not None:
        sampler = RandomSampler(images, generator=torch.Generator().manual_seed(shuffle_seed))
    last = shuffle_seed is not None and len(images) >= size  # batch norm in training needs full batches
    return DataLoader(images, size, sampler=sampler, collate_fn=collate, drop_last=last)  # type: ignore[arg-type]


@torch.inference_mode()
def accuracy(model: nn.Module, images: ImageSet, data: ImageData, *, batch_size: int = 500) -> float:
    """Top-1 accuracy, 0 to 1, in float32 and eval mode; the model's mode is restored."""
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    right = 0
    try:
        for inputs, labels in batches(images, batch_size, data):
            predicted = logits_of(model(inputs.to(device))).argmax(1).cpu()
            right += int((predicted == labels).sum())
    finally:
        model.train(training)
    return right / len(images)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, inputs: Iterator[Tensor]) -> None:
    """Set running means and variances to the plain average over ``inputs`` (float batches); nothing else is in training mode."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's name for the cumulative average
        norm.train()
    try:
        for batch in inputs:
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


@dataclass
class TiedTraining:
    """One run of tied training.

    Attributes:
        model: trained in place, at full width.
        teacher: gives the soft targets; it is never changed.
        plan: the clusters to tie (mode ``hard``) or the widths to reach (mode ``pdc``).
        data: training images, preparation; ``held_out`` are images for the accuracy after each epoch.
        directory: where ``metrics.jsonl`` and ``checkpoint/`` go, or None to write nothing.
    """

    model: nn.Module
    teacher: nn.Module
    plan: ClusterPlan
    data: ImageData
    held_out: ImageSet | None
    options: TrainOptions = field(default_factory=TrainOptions)
    mode: Literal["pdc", "hard"] = "pdc"
    directory: Path | None = None
    observer: Observer = field(default_factory=_Silent)

    def run(self, *, resume: bool = False) -> tuple[ClusterPlan, list[dict[str, Any]]]:
        """Train, snap, re-estimate batch-norm statistics; give the plan that is now exact and the metrics.

        Raises:
            PdcError: the loss is not finite.
            ArtifactError: the checkpoint to resume from does not belong to this run.
        """
        from accelerate import Accelerator

        accelerator = Accelerator()
        steps = max(1, len(_loader(self.data.train, self.options.batch_size, 0)))
        tying = Tying(self.model, self.plan, self.mode, total_steps=steps * self.options.epochs)
        optimizer = torch.optim.SGD(
            _parameter_groups(self.model, self.options.weight_decay),
            self.options.lr,
            self.options.momentum,
            nesterov=self.options.momentum > 0,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps, self.options.epochs))
        metrics: list[dict[str, Any]] = []
        first = 0
        if resume and (state := self._load_checkpoint()) is not None:
            metrics, first = self._restore(state, optimizer, schedule, tying)
        if self.options.channels_last and _has_maps(self.model):
            self.model.to(memory_format=torch.channels_last)
        teacher = accelerator.prepare_model(self.teacher, evaluation_mode=True).eval()
        student, optimizer, schedule = accelerator.prepare(self.model, optimizer, schedule)
        for epoch in range(first, self.options.epochs):
            record = self._epoch(epoch, steps, accelerator, student, teacher, optimizer, schedule, tying)
            metrics.append(record)
            self._write(record)
            self._save_checkpoint(epoch + 1, optimizer, schedule, tying, metrics)
            self.observer.on_epoch(record)
        tying.snap()
        tying.close()
        reestimate_batch_norm(self.model, self._calibration(accelerator.device))
        return tying.snap(), metrics

    def _epoch(
        self,
        epoch: int,
        steps: int,
        accelerator: Any,
        student: nn.Module,
        teacher: nn.Module,
        optimizer: Any,
        schedule: Any,
        tying: Tying,
    ) -> dict[str, Any]:
        options, started = self.options, time.perf_counter()
        torch.manual_seed(options.seed + 1_000_003 * (epoch + 1))
        student.train()
        total = right = seen = 0.0
        inputs = batches(self.data.train, options.batch_size, self.data, shuffle_seed=options.seed + 7919 * (epoch + 1))
        for step, (images, labels) in enumerate(inputs, 1):
            images, labels = self._placed(images, accelerator.device), labels.to(accelerator.device)
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=options.amp == "bf16"):
                with torch.inference_mode():
                    targets = logits_of(teacher(images)).float()
                logits = logits_of(student(images)).float()
            loss = distillation_loss(logits, targets.clone(), labels, options.alpha, options.temperature)
            if not math.isfinite(value := float(loss.detach())):
                raise PdcError(
                    f"the loss became {value} in epoch {epoch + 1}, step {step}",
                    hint="lower --lr, or check the training images",
                )
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            tying.step()
            total, seen = total + value * len(labels), seen + len(labels)
            right += float((logits.detach().argmax(1) == labels).sum())
            if step % 10 == 0 or step == steps:
                rate, residual = schedule.get_last_lr()[0], float(tying.residual()) if step == steps else None
                self.observer.on_step(
                    StepReport(epoch, step, steps, total / seen, right / seen, rate, tying.current.macs_after, residual)
                )
        return {
            "kind": "epoch",
            "epoch": epoch + 1,
            "loss": total / seen,
            "train_accuracy": right / seen,
            "accuracy": None if self.held_out is None else accuracy(self.model, self.held_out, self.data),
            "residual": float(tying.residual()),
            "lr": schedule.get_last_lr()[0],
            "macs": tying.current.macs_after,
            "seconds": time.perf_counter() - started,
        }

    def _placed(self, images: Tensor, device: torch.device) -> Tensor:
        layout = torch.channels_last if self.options.channels_last and images.dim() == 4 else torch.contiguous_format
        return images.to(device, memory_format=layout)

    def _calibration(self, device: torch.device) -> Iterator[Tensor]:
        prepared = batches(self.data.train, self.options.batch_size, self.data, shuffle_seed=self.options.seed)
        for _, (images, _) in zip(range(self.options.calibration_batches), prepared, strict=False):
            yield self._placed(images, device)

    def _write(self, record: dict[str, Any]) -> None:
        if self.directory is not None:
            with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    @property
    def _checkpoint(self) -> Path:
        assert self.directory is not None
        return self.directory / "checkpoint" / "last.pt"

    def _signature(self) -> str:
        """What a checkpoint must agree with to be continued."""
        return json.dumps([self.plan.groups.digest(), self.plan.widths, self.mode, vars(self.options)], sort_keys=True)

    def _save_checkpoint(
        self, epoch: int, optimizer: Any, schedule: Any, tying: Tying, metrics: list[dict[str, Any]]
    ) -> None:
        if self.directory is None:
            return
        state = {
            "signature": self._signature(),
            "epoch": epoch,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "tying": tying.state_dict(),
            "metrics": json.dumps(metrics),
        }
        self._checkpoint.parent.mkdir(exist_ok=True)
        beside = self._checkpoint.with_suffix(".writing")
        torch.save(state, beside)
        os.replace(beside, self._checkpoint)

    def _load_checkpoint(self) -> dict[str, Any] | None:
        if self.directory is None or not self._checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise ArtifactError(
                f"the checkpoint is damaged: {error}", where=str(self._checkpoint), hint="start again with --overwrite"
            ) from error
        if state["signature"] != self._signature():
            raise ArtifactError(
                "the checkpoint belongs to a run with other options",
                where=str(self._checkpoint),
                hint="repeat the command as it was, or start again with --overwrite",
            )
        return state

    def _restore(
        self, state: dict[str, Any], optimizer: Any, schedule: Any, tying: Tying
    ) -> tuple[list[dict[str, Any]], int]:
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        tying.load_state_dict(state["tying"])
        return json.loads(state["metrics"]), state["epoch"]


def warm_cosine(steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """Step -> factor of the learning rate: up over half an epoch, then a half cosine down to 0.

    >>> factor = warm_cosine(10, 2)
    >>> factor(0), factor(5), round(factor(20), 3)
    (0.2, 1.0, 0.0)
    """
    total = steps_per_epoch * epochs
    warm = max(1, min(steps_per_epoch // 2, total // 4))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    return factor


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two or more axes decay; biases and normalisation do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [([p for p in trained if p.dim() > 1], weight_decay), ([p for p in trained if p.dim() <= 1], 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _has_maps(model: nn.Module) -> bool:
    return any(p.dim() == 4 for p in model.parameters())
