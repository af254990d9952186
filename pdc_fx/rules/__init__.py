"""One file per operator family. Importing this package fills the registry."""

from pdc_fx.rules import (
    contraction,
    creation,
    elementwise,
    indexing,
    linear,
    mixing,
    movement,
    normalization,
    places,
    spatial,
)
from pdc_fx.rules.base import Channels, Declined, Flow, Site, Value, Weight, apply_rule, registered, rule

__all__ = [
    "Channels",
    "Declined",
    "Flow",
    "Site",
    "Value",
    "Weight",
    "apply_rule",
    "contraction",
    "creation",
    "elementwise",
    "indexing",
    "linear",
    "mixing",
    "movement",
    "normalization",
    "places",
    "registered",
    "rule",
    "spatial",
]
