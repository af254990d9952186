"""How good a classifier is, and batch-norm statistics that fit its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pdc_fx.data import ImageData, ImageSet, evaluation_batches
from pdc_fx.distill.loss import logits_of
from pdc_fx.distill.processes import Processes
from pdc_fx.passes.statistics import moving_norms
from pdc_fx.trace import evaluating


@torch.inference_mode()
def accuracy(model: nn.Module, images: ImageSet, data: ImageData, *, processes: Processes | None = None) -> float:
    """Top-1 accuracy, 0 to 1, in float32 and eval mode; all modes are restored. Several ``processes`` share the images."""
    group = processes or Processes()
    device = next(model.parameters()).device
    right = 0
    with evaluating(model):
        for inputs, labels in evaluation_batches(images, data, rank=group.rank, world_size=group.count, device=device):
            predicted = logits_of(model(inputs)).argmax(1)
            right += int((predicted == labels).sum())
    return group.summed([right])[0] / len(images)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, inputs: Iterator[Tensor]) -> None:
    """Set running means and variances that move in training to the plain average over ``inputs`` (float batches)."""
    norms = moving_norms(model)
    if not norms:
        return
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's name for the cumulative average
            norm.train()
        try:
            for batch in inputs:
                model(batch)
        finally:
            for norm, momentum, training in before:
                norm.momentum, norm.training = momentum, training
