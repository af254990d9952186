"""Training: a tied student, or the compact network that it comes to, distilled from its untouched teacher."""

from __future__ import annotations

from pdc_fx.distill.checkpoints import Checkpoints, CheckpointWarning
from pdc_fx.distill.evaluation import accuracy, reestimate_batch_norm
from pdc_fx.distill.features import FEATURE_LOSSES, cut_points
from pdc_fx.distill.loss import LOGIT_LOSSES, distillation_loss, logits_of
from pdc_fx.distill.observing import Observer, StepReport, require_board
from pdc_fx.distill.optim import learning_rate, optimizer_for
from pdc_fx.distill.processes import Processes
from pdc_fx.distill.training import TiedTraining
from pdc_fx.options import TrainOptions

__all__ = [
    "FEATURE_LOSSES",
    "LOGIT_LOSSES",
    "CheckpointWarning",
    "Checkpoints",
    "Observer",
    "Processes",
    "StepReport",
    "TiedTraining",
    "TrainOptions",
    "accuracy",
    "cut_points",
    "distillation_loss",
    "learning_rate",
    "logits_of",
    "optimizer_for",
    "reestimate_batch_norm",
    "require_board",
]
