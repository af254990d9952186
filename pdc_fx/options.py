"""How to train: every choice by the name it has in torchvision's and timm's training scripts, checked when it is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pdc_fx.errors import InputError

Mode = Literal["pdc", "csgd", "hard", "progressive"]
Start = Literal["model", "fold", "calibrate"]
Amp = Literal["auto", "bf16", "fp16", "no"]
Opt = Literal["auto", "muon", "sgd", "adamw"]
Distill = Literal["kl", "zscore", "dkd", "dist"]
Features = Literal["auto", "match", "attention", "none"]

MIXED_FROM = 20
"""Epochs from which on images are mixed where nothing is said of it: in a shorter run that gained nothing (``benchmarks/accuracy.py``)."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: passes over the training images; 0 only for a ``start`` of :func:`pdc_fx.compress` that needs no training.
        batch_size: images per step, over all processes together.
        lr: peak learning rate.
        opt: ``muon`` (:mod:`pdc_fx.distill.muon`), ``sgd`` with Nesterov momentum, or ``adamw``; ``auto`` is ``muon`` where clusters
            are final from the first step, else ``sgd``.
        momentum: of Muon and SGD; weight_decay: on weights of two or more axes, of Muon on those that have a scale.
        sched: ``cosine`` down to 0, or ``step``: times ``lr_gamma`` every ``lr_step_size`` epochs.
        warmup_epochs: over which the learning rate rises to its peak; at most a quarter of the run.
        label_smoothing: of the labels' cross entropy, 0 to 1.
        distill: loss between student's and teacher's logits, by name (:data:`pdc_fx.distill.LOGIT_LOSSES`).
        alpha: weight of that loss, 0 to 1, against the labels' cross entropy; temperature: its T. Both mean the same for each name.
        teacher_flip: take the mean of the teacher's logits of an image and of its mirror image; for an augmentation that mirrors. Where
            None: if the images are mixed and such an augmentation is in use.
        features: loss between maps of student and teacher, added to the rest (:mod:`pdc_fx.distill.features`): ``match`` between the
            maps themselves, for equal shapes, ``attention`` between the places where they are large, for any two networks; ``auto`` is
            ``match`` where student and teacher can be matched, else ``none``.
        features_weight: factor of that loss.
        amp: ``bf16`` or ``fp16`` runs convolutions and matrix products in half precision (autocast; ``fp16`` scales the loss and
            needs a GPU), ``no`` all in float32; ``auto`` is ``bf16`` where the device has instructions for it, else ``no``.
        channels_last: memory format of the network and the images.
        compile: run network and teacher through ``torch.compile``.
        workers: processes that decode images ahead; 0 decodes on threads.
        augment: name of an augmentation preset (``imagenet``, ``cifar``, ``none``, ...); that of the data where None.
        mixup_alpha, cutmix_alpha: of the Beta distribution that says how far two images are mixed (:mod:`pdc_fx.data.mixing`); 0 for
            never, and either where both are given; mixup_prob: share of the batches that are mixed at all. Where neither is given and a
            teacher asked, ``cutmix_alpha`` is 1 in a run of :data:`MIXED_FROM` epochs or more with an augmentation that mirrors.
        seed: of the order of images, augmentation and whatever the model draws.
        model_ema: hand on an exponential moving average of the weights; model_ema_decay: its decay per step.
        checkpoint_every: steps between checkpoints, besides one at the end of each epoch; 0 for none.
        print_freq: steps between reports.
        tensorboard: write the same figures for TensorBoard, into ``tensorboard/``.
        calibration_batches: training batches over which batch-norm statistics are estimated anew at the end.

    Raises:
        InputError: a value of another type, or out of range.

    >>> TrainOptions(epochs=3, opt="adamw", lr=1e-3).sched
    'cosine'
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.05
    opt: Opt = "auto"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    sched: Literal["cosine", "step"] = "cosine"
    lr_step_size: int = 30
    lr_gamma: float = 0.1
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.0
    distill: Distill = "kl"
    alpha: float = 0.9
    temperature: float = 4.0
    teacher_flip: bool | None = None
    features: Features = "none"
    features_weight: float = 20.0
    amp: Amp = "auto"
    channels_last: bool = True
    compile: bool = False
    workers: int = 0
    augment: str | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float | None = None
    mixup_prob: float = 0.5
    seed: int = 0
    model_ema: bool = False
    model_ema_decay: float = 0.999
    checkpoint_every: int = 500
    print_freq: int = 10
    tensorboard: bool = False
    calibration_batches: int = 50

    def __post_init__(self) -> None:
        for name, known in get_type_hints(type(self)).items():
            kinds = get_args(known) if NoneType in get_args(known) else (known,)
            kind = str if get_origin(kinds[0]) is Literal else kinds[0]
            value = getattr(self, name)
            if not (_fits(value, kind) or (value is None and NoneType in kinds)):
                raise InputError(f"'{name}' takes a {_KINDS[kind]}, not {value!r}")
        checks = {
            "epochs must not be negative": self.epochs >= 0,
            "batch_size must be at least 1": self.batch_size >= 1,
            "lr must be positive and finite": 0 < self.lr < float("inf"),
            f"opt must be one of {', '.join(get_args(Opt))}": self.opt in get_args(Opt),
            "momentum must be in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay must not be negative": self.weight_decay >= 0,
            "sched must be 'cosine' or 'step'": self.sched in ("cosine", "step"),
            "lr_step_size must be at least 1": self.lr_step_size >= 1,
            "lr_gamma must be in (0, 1]": 0 < self.lr_gamma <= 1,
            "warmup_epochs must not be negative": self.warmup_epochs >= 0,
            "label_smoothing must be in [0, 1)": 0 <= self.label_smoothing < 1,
            f"distill must be one of {', '.join(get_args(Distill))}": self.distill in get_args(Distill),
            "alpha must be in [0, 1]": 0 <= self.alpha <= 1,
            "temperature must be positive": self.temperature > 0,
            "teacher_flip needs a teacher, and alpha 0 asks none": self.alpha > 0 or not self.teacher_flip,
            f"features must be one of {', '.join(get_args(Features))}": self.features in get_args(Features),
            "features need a teacher, and alpha 0 asks none": self.alpha > 0 or self.features in ("auto", "none"),
            "features_weight must be positive (features 'none' leaves the term out)": 0
            < self.features_weight
            < float("inf"),
            "features do not work with compile, which leaves no place for the hooks that take maps": not self.compile
            or self.features in ("auto", "none"),
            f"amp must be one of {', '.join(get_args(Amp))}": self.amp in get_args(Amp),
            "workers must not be negative": self.workers >= 0,
            "mixup_alpha and cutmix_alpha must not be negative": min(self.mixup_alpha, self.cutmix_alpha or 0) >= 0,
            "mixup_prob must be in [0, 1]": 0 <= self.mixup_prob <= 1,
            "model_ema_decay must be in [0, 1)": 0 <= self.model_ema_decay < 1,
            "checkpoint_every must not be negative": self.checkpoint_every >= 0,
            "print_freq must be at least 1": self.print_freq >= 1,
            "calibration_batches must be at least 1": self.calibration_batches >= 1,
        }
        for rule, holds in checks.items():
            if not holds:
                raise InputError(rule)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} must be a finite number, not {value}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainOptions:
        """Options from names and values, as a configuration file has them.

        Raises:
            InputError: an unknown name (the nearest known one is in the message), or a value of another type or out of range.

        >>> TrainOptions.of({"epochs": 2}).epochs
        2
        """
        known = get_type_hints(cls)
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise InputError(
                    f"no training option is called '{name}'",
                    hint=f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}",
                )
        return cls(**values)

    def settled(self, *, mirrored: bool) -> TrainOptions:
        """The same with nothing left open.

        Args:
            mirrored: whether the augmentation mirrors images.

        >>> TrainOptions(epochs=20).settled(mirrored=True).cutmix_alpha
        1.0
        >>> TrainOptions(epochs=20).settled(mirrored=False).cutmix_alpha  # not characters, say
        0.0
        """
        cutmix, flip = self.cutmix_alpha, self.teacher_flip
        if cutmix is None:
            long = self.epochs >= MIXED_FROM and self.mixup_prob > 0
            cutmix = 1.0 if long and mirrored and self.alpha > 0 and not self.mixup_alpha else 0.0
        if flip is None:
            flip = mirrored and self.alpha > 0 and max(cutmix, self.mixup_alpha) * self.mixup_prob > 0
        return replace(self, cutmix_alpha=cutmix, teacher_flip=flip)

    def to_dict(self) -> dict[str, Any]:
        """Names and values, plain."""
        return asdict(self)

    def decides(self) -> dict[str, Any]:
        """What must agree for a run to be continued: all but how it is reported and saved, and how data are read."""
        report = {"print_freq", "tensorboard", "checkpoint_every", "workers"}
        return {name: value for name, value in self.to_dict().items() if name not in report}


_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "word"}


def _fits(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)
