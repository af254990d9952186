"""Tied training under distillation, in one process or many (Hugging Face Accelerate).

The module that is trained is the user's own, at full width; :class:`~pdc_fx.passes.tie.Tying` follows each optimizer step. Where clusters
are final from the first step (mode ``hard``), its compact form is trained in its place (:mod:`pdc_fx.distill.compact`).
Everything random about a step is a function of ``(seed, epoch, step, rank)``: the order of the images, augmentation, and what the
model draws. So a run that goes on from a checkpoint is, on a CPU, bit for bit the run that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pdc_fx.data import ImageData, ImageSet, batches_per_epoch, training_batches
from pdc_fx.data.augment import AUGMENTATIONS
from pdc_fx.data.mixing import mixed
from pdc_fx.data.order import seed_of
from pdc_fx.directory import CHECKPOINT, METRICS
from pdc_fx.distill.checkpoints import Checkpoints, weights_digest
from pdc_fx.distill.compact import Compact, Untrainable, as_it_is, compact_for_training
from pdc_fx.distill.evaluation import accuracy, reestimate_batch_norm
from pdc_fx.distill.features import captured, compared, feature_loss
from pdc_fx.distill.interruption import Interruption
from pdc_fx.distill.layout import laid_out, lay_out
from pdc_fx.distill.loss import distillation_loss, logits_of
from pdc_fx.distill.observing import Observer, Silent, StepReport, tensorboard
from pdc_fx.distill.optim import averaged, learning_rate, optimizer_for
from pdc_fx.distill.precision import half_precision
from pdc_fx.distill.processes import Processes
from pdc_fx.errors import ArtifactError, InputError, Interrupted, PdcError
from pdc_fx.files import replace_file
from pdc_fx.ir import ClusterPlan
from pdc_fx.options import MIXED_FROM, TrainOptions
from pdc_fx.passes.methods import Method, method_of
from pdc_fx.passes.tie import Tying
from pdc_fx.trace import looking_at, seed_all


@dataclass
class _Position:
    """Where a run stands: what it has done of the present epoch, and the records of those before."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0
    rate: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.loss, self.right, self.seen, self.seconds = epoch, 0, 0.0, 0.0, 0.0, 0.0


@dataclass
class TiedTraining:
    """One run of tied training.

    Attributes:
        model: trained in place; its shapes never change.
        teacher: gives the soft targets; it is never changed.
        plan: the clusters to tie (modes ``hard`` and ``csgd``) or the widths to reach (``pdc`` and ``progressive``).
        data: training images, preparation; ``held_out`` are images for the accuracy after each epoch.
        directory: where ``metrics.jsonl`` and ``checkpoint/`` go, or None to write nothing.
        processes: which of how many this process is; found out by Accelerate where not given.
        origin: what else a checkpoint must agree with to be continued, by the name that a message calls it.
    """

    model: nn.Module
    teacher: nn.Module
    plan: ClusterPlan
    data: ImageData
    held_out: ImageSet | None
    options: TrainOptions = field(default_factory=TrainOptions)
    mode: str | Method = "pdc"
    directory: Path | None = None
    observer: Observer = field(default_factory=Silent)
    processes: Processes | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def run(self, *, resume: bool = False) -> tuple[ClusterPlan, list[dict[str, Any]]]:
        """Train, snap, re-estimate batch-norm statistics; give the plan that is now exact and the metrics.

        Raises:
            PdcError: the loss is not finite, a checkpoint cannot be written, a worker died.
            Interrupted: SIGTERM or Ctrl-C; a checkpoint was written.
            ArtifactError: the checkpoint to resume from does not belong to this run, or all are damaged.
        """
        return _Run(self).run(resume)


class _Run:
    """The moving parts of one run."""

    def __init__(self, setting: TiedTraining) -> None:
        self.setting, self.model = setting, setting.model
        self.processes = setting.processes or Processes.of_environment()
        augment = setting.options.augment
        self.data = setting.data if augment is None else setting.data.with_augmentation(augment)
        mirrored = AUGMENTATIONS[self.data.augmentation].flip
        self.options = options = setting.options.settled(mirrored=mirrored)
        if options.teacher_flip and not mirrored:
            raise InputError(
                f"teacher_flip takes mirror images for images of the same class, and augmentation '{self.data.augmentation}' makes none",
                hint="leave --teacher-flip out, or choose an augmentation that mirrors, like --augment flip",
            )
        self.steps = batches_per_epoch(len(self.data.train), options.batch_size)
        device = self.processes.device
        self.half = half_precision(options.amp, device)
        if self.half == torch.float16 and method_of(setting.mode).pull:
            raise InputError(
                f"mode '{method_of(setting.mode).name}' adds its pull to gradients, which fp16 multiplies by thousands",
                hint="take --amp bf16 or --amp no",
            )
        self.model.to(device)
        self.teacher_digest = weights_digest(setting.teacher.state_dict()) if options.alpha > 0 else ""
        self.teacher = setting.teacher.to(device).eval()
        example = torch.zeros(1, *self.data.image_shape, device=device)
        obstacle = "torch.compile leaves no place for hooks" if options.compile else ""
        if options.alpha == 0:
            obstacle = "alpha is 0: there is no teacher"
        self.maps = compared(options.features, self.model, self.teacher, example, obstacle=obstacle)
        self.position = _Position()
        if options.features != "none":
            self.position.metrics.append({"kind": "features", **asdict(self.maps)})
        if setting.options.cutmix_alpha is None and options.cutmix_alpha:
            reason = f"the run has {MIXED_FROM} epochs or more; --cutmix-alpha 0 for none"
            self.position.metrics.append({"kind": "images", "mixed": options.mixup_prob, "reason": reason})
        plan, self.compact = setting.plan, self._compact(example)
        if self.compact is not None:
            self.model, plan = self.compact.model, self.compact.separate(example)
        self.pairs = [(*pair, as_it_is) for pair in self.maps.modules] if self.compact is None else self.compact.maps
        networks = (self.model, self.teacher) if options.alpha > 0 else (self.model,)
        self.layout, problem = lay_out(networks, example, channels_last=options.channels_last)
        if problem:
            self.position.metrics.append({"kind": "layout", "channels_last": False, "reason": problem})
        self.tying = Tying(self.model, plan, setting.mode, total_steps=self.steps * options.epochs)
        unused = self.processes.count > 1 and _some_lead_nowhere(self.model, laid_out(example, self.layout))
        self.student = self.processes.distributed(self.model, unused=unused)
        if options.compile:
            self.student, self.teacher = (
                cast("nn.Module", torch.compile(network)) for network in (self.student, self.teacher)
            )
        self.optimizer = optimizer_for(self.model, options, example, final=self._final())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate(options, self.steps))
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half == torch.float16)
        self.ema = averaged(self.model, options.model_ema_decay) if options.model_ema else None
        self.checkpoints = None if setting.directory is None else Checkpoints(setting.directory / CHECKPOINT)

    def run(self, resume: bool) -> tuple[ClusterPlan, list[dict[str, Any]]]:
        if self.setting.directory is None and (resume or self.options.tensorboard):
            what = "resume goes on from a checkpoint" if resume else "figures for TensorBoard are written"
            raise InputError(f"{what} in a directory, and none is given", hint="give directory=")
        if resume and self.checkpoints is not None and (state := self.checkpoints.load()) is not None:
            self._restore(state)
        else:
            self._start()
        if self.processes.first:
            self.setting.observer.on_start([r for r in self.position.metrics if r["kind"] != "epoch"])
        wanted = self.options.tensorboard and self.processes.first
        with Interruption() as interruption, tensorboard(self.setting.directory if wanted else None) as board:
            while self.position.epoch < self.options.epochs:
                self._epoch(interruption, board)
                if self.processes.summed([interruption.requested])[0]:  # while the accuracy was measured, say
                    self._stop(interruption)
        self.tying.snap()
        self.tying.close()
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
            self.tying.snap()
        self.processes.share_buffers(self.model)
        reestimate_batch_norm(self.model, self._calibration())
        plan = self.tying.snap()
        self.position.metrics.append({"kind": "final", "accuracy": self._accuracy(self.model)})
        return (plan if self.compact is None else self.compact.expand()), self.position.metrics

    def _final(self) -> bool:
        """Whether clusters are final from the first step."""
        method = method_of(self.setting.mode)
        return method.held and not method.rounds

    def _compact(self, example: Tensor) -> Compact | None:
        """The network to train where clusters are final from the first step, unless it cannot be trained in place of the tied one."""
        if not self._final():
            return None
        try:
            compact, reason = compact_for_training(self.model, self.setting.plan, example, self.maps.modules), ""
        except Untrainable as error:
            compact, reason = None, str(error)
        trained = "tied" if compact is None else "compact"
        self.position.metrics.append({"kind": "network", "trained": trained, "reason": reason})
        return compact

    def _start(self) -> None:
        """How good the network is that training begins with; as far as it is tied, what training has to be better than."""
        if self.checkpoints is not None and self.processes.first:
            self.checkpoints.clear()  # of another run, which this one must not go on from
        self.position.metrics.append(
            {"kind": "start", "accuracy": self._accuracy(self._averaged), "residual": float(self.tying.residual())}
        )

    def _accuracy(self, model: nn.Module) -> float | None:
        """On the images that were held out; None where none were."""
        held_out = self.setting.held_out
        return None if held_out is None else accuracy(model, held_out, self.data, processes=self.processes)

    @property
    def _averaged(self) -> nn.Module:
        """What is to be delivered: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def _epoch(self, interruption: Interruption, board: Any) -> None:
        options, position = self.options, self.position
        started = time.perf_counter() - position.seconds
        self.student.train()
        inputs = training_batches(
            self.data,
            options.batch_size,
            seed=options.seed,
            epoch=position.epoch,
            start=position.step,
            workers=options.workers,
            rank=self.processes.rank,
            world_size=self.processes.count,
            device=self.processes.device,
        )
        with closing(inputs):
            for images, labels in inputs:
                self._step(images, labels, interruption)
                position.seconds = time.perf_counter() - started
                if position.step % options.print_freq == 0 or position.step == self.steps:
                    self._report(board)
                if (
                    options.checkpoint_every
                    and position.step % options.checkpoint_every == 0
                    and position.step < self.steps
                ):
                    self._save()
        record = self._record(time.perf_counter() - started)
        position.metrics.append(record)
        position.begin_epoch(position.epoch + 1)
        if self.processes.first and self.setting.directory is not None:
            lines = "".join(json.dumps(entry) + "\n" for entry in position.metrics)
            replace_file(self.setting.directory / METRICS, lines.encode())
        self._save()
        if self.processes.first:
            self.setting.observer.on_epoch(record)
            for name in ("accuracy", "train_accuracy", "residual", "macs"):
                if record[name] is not None:
                    board.add_scalar(f"epoch/{name}", record[name], record["epoch"])

    def _step(self, images: Tensor, labels: Tensor, interruption: Interruption) -> None:
        position = self.position
        try:
            right, loss = self._descend(images, labels)
        except PdcError:
            raise
        # of torch (memory, a compiler, sizes that a layer does not train on) or of the model
        except Exception as error:
            text = str(error).partition("\n")[0] or type(error).__name__
            raise PdcError(
                f"training failed in epoch {position.epoch + 1}, step {position.step + 1}: {text}",
                hint=_hint_after(error),
            ) from error
        position.step += 1
        counted = [float(loss) * len(labels), float(right), len(labels), interruption.requested]
        value, right_now, seen, stop = self.processes.summed(counted)
        if not math.isfinite(value):
            raise PdcError(
                f"the loss became {value / seen} in epoch {position.epoch + 1}, step {position.step}",
                hint="lower --lr and start again (--overwrite), or check the training images",
            )
        position.loss, position.right, position.seen = (
            position.loss + value,
            position.right + right_now,
            position.seen + seen,
        )
        if stop:
            self._stop(interruption)

    def _descend(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimizer, and of all that goes with it; how many images were right before it, and the loss."""
        options, position = self.options, self.position
        seed_all(seed_of(options.seed, position.epoch, position.step, self.processes.rank))
        batch = mixed(images, labels, options.mixup_alpha, options.cutmix_alpha or 0.0, options.mixup_prob)
        images = laid_out(batch.images, self.layout)
        with (
            captured(self.model, [name for name, _, _ in self.pairs]) as ours,
            captured(self.teacher, [name for _, name, _ in self.pairs]) as theirs,
            torch.autocast(images.device.type, self.half, enabled=self.half is not None),
        ):
            targets = self._targets(images)
            logits = logits_of(self.student(images)).float()
        weights = [(batch.share, batch.labels), (1 - batch.share, batch.others)]
        loss = torch.stack([share * self._loss(logits, targets, of) for share, of in weights if share > 0]).sum()
        if self.pairs:
            maps = [(spread(ours[student]), theirs[teacher]) for student, teacher, spread in self.pairs]
            loss = loss + options.features_weight * feature_loss(self.maps.loss, maps)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        position.rate = float(self.schedule.get_last_lr()[0])  # of this step
        self.schedule.step()
        self.tying.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return batch.right(logits.argmax(1)), loss.detach()

    def _targets(self, images: Tensor) -> Tensor | None:
        """What the teacher says, of mirror images as well if they are wanted; where nobody listens, it is not asked."""
        if self.options.alpha == 0:
            return None
        views = [images]  # the images themselves come last: their maps are those that are compared
        if self.options.teacher_flip:
            views.insert(0, images.flip(-1))
        with torch.inference_mode():
            targets = torch.stack([logits_of(self.teacher(view.clone())).float() for view in views]).mean(0)
        return targets.clone()

    def _loss(self, logits: Tensor, targets: Tensor | None, labels: Tensor) -> Tensor:
        o = self.options
        return distillation_loss(logits, targets, labels, o.alpha, o.temperature, o.label_smoothing, o.distill)

    def _stop(self, interruption: Interruption) -> None:
        self._save()
        epoch, step = self.position.epoch, self.position.step
        raise Interrupted(
            f"stopped in epoch {epoch + 1}, step {step} of {self.steps}" if step else f"stopped after epoch {epoch}",
            signal=interruption.requested or signal.SIGTERM,  # which came to another process
            hint="a checkpoint was written; --resume goes on from there" if self.checkpoints is not None else "",
        )

    def _report(self, board: Any) -> None:
        position, rate = self.position, self.position.rate
        residual = float(self.tying.residual()) if position.step == self.steps else None
        loss, right = position.loss / position.seen, position.right / position.seen
        if not self.processes.first:
            return
        self.setting.observer.on_step(
            StepReport(
                position.epoch, position.step, self.steps, loss, right, rate, self.tying.current.macs_after, residual
            )
        )
        at = position.epoch * self.steps + position.step
        board.add_scalar("step/loss", loss, at)
        board.add_scalar("step/lr", rate, at)

    def _record(self, seconds: float) -> dict[str, Any]:
        position = self.position
        for network in (self.model, *([] if self.ema is None else [self.ema.module])):
            self.processes.share_buffers(network)
        return {
            "kind": "epoch",
            "epoch": position.epoch + 1,
            "loss": position.loss / position.seen,
            "train_accuracy": position.right / position.seen,
            "accuracy": self._accuracy(self._averaged),
            "residual": float(self.tying.residual()),
            "lr": position.rate,
            "macs": self.tying.current.macs_after,
            "precision": str(self.half or torch.float32).removeprefix("torch."),
            "seconds": seconds,
        }

    def _calibration(self) -> Iterator[Tensor]:
        """The same batches in every process, as large as its share of a step."""
        inputs = training_batches(
            self.data,
            max(1, self.options.batch_size // self.processes.count),
            seed=self.options.seed,
            epoch=0,
            workers=self.options.workers,
            device=self.processes.device,
        )
        with closing(inputs):
            for _, (images, _) in zip(range(self.options.calibration_batches), inputs, strict=False):
                yield laid_out(images, self.layout)

    def _signature(self) -> dict[str, str]:
        """What a checkpoint must agree with to be continued, by name."""
        plan = self.setting.plan
        parts = {
            "groups of channels": plan.groups.digest(),
            "widths": plan.widths,
            "clusters": hashlib.sha256(b"".join(c.astype("<i8").tobytes() for c in plan.clusters)).hexdigest(),
            "method": asdict(method_of(self.setting.mode)),
            "training images": len(self.data.train),
            "labels": self.data.train.labels_digest,
            "normalisation": [self.data.mean, self.data.std],
            "augmentation": self.data.augmentation,
            "teacher": self.teacher_digest,
            "network that is trained": "tied" if self.compact is None else "compact",
            **self.options.decides(),
        }
        return {name: json.dumps(value, sort_keys=True) for name, value in {**self.setting.origin, **parts}.items()}

    def _save(self) -> None:
        if self.checkpoints is None or not self.processes.first:
            return
        position = {**vars(self.position), "metrics": json.dumps(self.position.metrics)}
        state = {
            "signature": self._signature(),
            "position": position,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "tying": self.tying.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }
        self.checkpoints.save(state, self.position.epoch * self.steps + self.position.step)

    def _restore(self, state: dict[str, Any]) -> None:
        theirs, ours = state.get("signature"), self._signature()
        if theirs != ours:
            theirs = theirs if isinstance(theirs, dict) else {}
            changed = ", ".join(name for name, value in ours.items() if theirs.get(name) != value)
            raise ArtifactError(
                f"the checkpoint belongs to a run with other options: {changed}",
                where=str(self.setting.directory),
                hint="repeat the command as it was, or start again with --overwrite",
            )
        try:
            self._take_over(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise ArtifactError(
                f"the checkpoint does not hold what a run saves: {type(error).__name__} {error}",
                where=str(self.setting.directory),
                hint="start again with --overwrite",
            ) from error

    def _take_over(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.tying.load_state_dict(state["tying"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.position = _Position(**{**state["position"], "metrics": json.loads(state["position"]["metrics"])})


def _some_lead_nowhere(model: nn.Module, example: Tensor) -> bool:
    """Whether the logits do not depend on some parameter that is trained (that of an auxiliary head, say)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with looking_at(model, example) as args, torch.enable_grad():
        logits = logits_of(model(*args))
    return any(g is None for g in torch.autograd.grad(logits.sum(), trained, allow_unused=True))


def _hint_after(error: Exception) -> str:
    """The way out where a step of training failed."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return "leave --compile out"
    if "memory" in str(error):
        return "a smaller --batch-size needs less"
    if "more than 1 value per channel" in str(error):
        return "a batch norm over single numbers needs a --batch-size of 2 or more"
    return ""
