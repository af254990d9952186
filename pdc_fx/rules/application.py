"""Run the rule of a call, and see to what rules need not: parameters that are moved about, calls without a rule, rules without sense."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from pdc_fx.rules.base import Declined, Flow, Rule, Site, Value, fixed_result
from pdc_fx.rules.channels import FIXED, Channels
from pdc_fx.rules.weights import View, Weight
from pdc_fx.trace import function_name


def apply_rule(site: Site, rule: Rule | None) -> Value:
    """Run the rule of a call; without one, or where it declines, freeze all that the call touches and say why."""
    own = site.node.meta.get("own", {})
    value: Value = None
    try:
        if site.node.meta.get("bypass"):
            raise Declined(
                "runs or hands out memory where it cannot be followed (TorchScript, a C++ extension, dlpack)"
            )
        if rule is None:
            raise Declined("has no rule")
        if any(
            alias.op == "get_attr" or max(alias.users, default=alias) > site.node
            for alias in site.node.meta.get("aliased", ())
        ):
            raise Declined("changes in place a tensor that other views share")
        value = _viewed(site, rule)
        value = rule(site) if value is None else value
        _require_sense(site, value)
        return value
    except Declined as reason:
        name, where = function_name(site.node.target), site.node.meta.get("source", "")
        text = f"{name} {reason} ({where})"
        if reason.made:
            site.flow.unheld[site.module, text] = reason.made
        site.freeze([list(site.node.args), dict(site.node.kwargs), site.node.meta.get("aliased", []), own], text)
        site.freeze_value(value, text)
        for alias in site.node.meta.get("aliased", ()):  # what held one value all along may do so no longer
            if isinstance(known := site.flow.values.get(alias), Channels):
                site.flow.values[alias] = replace(known, same=frozenset())
        return fixed_result(site.node)


def _viewed(site: Site, rule: Rule) -> Value:
    """What a call makes of one parameter, of which several axes might hold channels, and of what holds none; None of any other call."""
    if "own" in site.node.meta:
        return None
    values = {node: site.value(node) for node in site.node.all_input_nodes}
    seen = {node: view for node, value in values.items() if (view := site.view(value)) is not None}
    rest = [value for node, value in values.items() if node not in seen]
    if len(seen) != 1 or not all(isinstance(v, Channels) and bool((v.label == FIXED).all()) for v in rest):
        return None
    [(given, view)] = seen.items()
    if not (view.moved or len(view.weight.wide) > 1):
        return None

    def alone(value: Value, labels: int = 0) -> Value:
        return _alone(site, rule, {**values, given: value}, labels)

    if isinstance(values[given], Weight) and isinstance(moved := alone(values[given]), Weight):
        return moved
    tried = {dim: alone(along, view.weight.shape[dim]) for dim, along in view.along.items()}
    found = {dim: result for dim, result in tried.items() if result is not None}
    if not found:
        return None
    parts = [result if isinstance(result, (list, tuple)) else [result] for result in found.values()]
    views: list[Value] = []
    for part in zip(*parts, strict=True):
        along = {dim: channels for dim, channels in zip(found, part, strict=True) if isinstance(channels, Channels)}
        if not along:
            return None
        views.append(View(view.weight, along))
    return views if isinstance(next(iter(found.values())), (list, tuple)) else views[0]


def _alone(site: Site, rule: Rule, values: dict[fx.Node, Value], labels: int) -> Value:
    """The result of a rule where arguments have these values, so many labels among them; None if it states anything of channels."""
    flow = Flow(site.flow.recording, values, labels=labels)
    try:
        result = rule(replace(site, flow=flow))
    except Declined:
        return None
    return result if flow == Flow(site.flow.recording, values, labels=labels) else None


def _require_sense(site: Site, value: Value) -> None:
    """What every rule for a call must do, its author being somebody else."""
    shape = site.node.meta.get("shape")
    if value is None and shape is not None:
        raise Declined("has a rule that says nothing about its result")
    if isinstance(value, Channels) and value.shape != shape:
        raise Declined(f"has a rule that gives the shape {value.shape} for {shape}")
    for name, node in site.node.meta.get("own", {}).items():
        weight, tensor = site.weight(node), node.meta["shape"]
        if weight is not None and weight.name not in site.flow.recording.parameters:
            continue
        if (
            weight is not None
            and max(tensor, default=1) > 1
            and not any(key[0] == weight.name for key in site.flow.axes)
        ):
            raise Declined(f"has a rule that says nothing about the parameter '{name}'")
