"""One file per operator family. Importing this package fills the registry."""

from pdc_fx.rules import (
    contraction,
    convolution,
    creation,
    elementwise,
    indexing,
    mixing,
    movement,
    normalization,
    places,
    spatial,
)
from pdc_fx.rules.application import apply_rule
from pdc_fx.rules.base import Declined, Flow, Site, Value
from pdc_fx.rules.channels import Channels, mix
from pdc_fx.rules.literals import Edit, literal
from pdc_fx.rules.registry import registered, rule
from pdc_fx.rules.resize import resize_rule
from pdc_fx.rules.weights import Weight

__all__ = [
    "Channels",
    "Declined",
    "Edit",
    "Flow",
    "Site",
    "Value",
    "Weight",
    "apply_rule",
    "contraction",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "literal",
    "mix",
    "mixing",
    "movement",
    "normalization",
    "places",
    "registered",
    "resize_rule",
    "rule",
    "spatial",
]
