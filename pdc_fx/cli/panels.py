"""The help of ``compress``: its options by what they are about, so that their names fit into 80 columns."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_PANELS = {
    "Model and data": "data weights num_classes input freeze workers augment mean std download",
    "Budget": "flops_reduction params_reduction latency_reduction latency_table provider allocation round_to",
    "Tying": "mode start calibration_images",
    "Training": "epochs batch_size lr opt momentum weight_decay sched lr_step_size lr_gamma warmup_epochs"
    " label_smoothing mixup_alpha cutmix_alpha mixup_prob model_ema model_ema_decay seed",
    "Distillation": "distill alpha temperature teacher_flip features features_weight teacher_model teacher_weights",
    "Speed": "amp channels_last compile",
    "Output": "output overwrite json print_freq tensorboard checkpoint_every resume config",
}
PANELS = {name: panel for panel, names in _PANELS.items() for name in names.split()}
"""Name of a parameter -> title of the panel it stands in."""


class GroupedCommand(TyperCommand):
    """A command whose options stand in :data:`PANELS`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.name in PANELS and hasattr(parameter, "rich_help_panel"):
                parameter.rich_help_panel = PANELS[parameter.name]
