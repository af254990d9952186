"""Run the rule of a call, and see to what rules need not: parameters that are moved about, calls without a rule, rules without sense."""

from __future__ import annotations

from dataclasses import replace

from pdc_fx.rules.base import Declined, Flow, Rule, Site, Value, fixed_result
from pdc_fx.rules.channels import Channels
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
    """What a call makes of one parameter alone, of which several axes might hold channels; None of any other call."""
    inputs = site.node.all_input_nodes
    value = site.value(inputs[0]) if len(inputs) == 1 and "own" not in site.node.meta else None
    view = site.view(value)
    if view is None or not (view.moved or len(view.weight.wide) > 1):
        return None
    if isinstance(value, Weight) and isinstance(moved := _alone(site, rule, value, 0), Weight):
        return moved
    tried = {dim: _alone(site, rule, along, view.weight.shape[dim]) for dim, along in view.along.items()}
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


def _alone(site: Site, rule: Rule, value: Value, labels: int) -> Value:
    """The result of a rule that only moves ``value``, a stand-in for what its call is given; None if it states anything of channels."""
    flow = Flow(site.flow.recording, {site.node.all_input_nodes[0]: value}, labels=labels)
    try:
        result = rule(replace(site, flow=flow))
    except Declined:
        return None
    untouched = Flow(site.flow.recording, flow.values, labels=labels)
    return result if flow == untouched else None


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
