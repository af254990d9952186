"""One file per operator family. Importing this package fills the registry."""

from pdc_fx.rules import elementwise, linear, movement, normalization, spatial
from pdc_fx.rules.base import Channels, Declined, Flow, Site, Value, Weight, apply_rule, registered, rule

__all__ = [
    "Channels",
    "Declined",
    "Flow",
    "Site",
    "Value",
    "Weight",
    "apply_rule",
    "elementwise",
    "linear",
    "movement",
    "normalization",
    "registered",
    "rule",
    "spatial",
]
