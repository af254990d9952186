"""Losses on intermediate maps, and the law of where the maps are taken.

Maps are compared at *cut points*: values of the recorded forward pass (:mod:`pdc_fx.trace`) that every path from the images to the logits
passes through, so that nothing of the network lies beside them. A cut point counts where

- it is a map: batch first, at least one axis more than the logits, and more than one position,
- a module of the model returns it, and does so once per forward pass; of several that return the same value it is the innermost,
- it is the last of its *stretch*: a run of cut points in which each is an element-wise function or a normalisation of the one before and
  of nothing else (convolution, batch norm, ReLU: the ReLU). Dropout is passed over, for in training it draws at random.

In a ResNet these are the outputs of the stem and of the blocks; inside a block the shortcut goes past every value.

Hooks take the maps, and are there during a step only: nothing is kept from one step to the next, and none is left after training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from pdc_fx.distill.loss import logits_of
from pdc_fx.errors import InputError
from pdc_fx.options import Features
from pdc_fx.passes.dependency import flow_of
from pdc_fx.rules import Channels
from pdc_fx.rules.registry import has_trait
from pdc_fx.trace import Recorder, Recording, record

Shape = tuple[int, ...]
Pairs = tuple[tuple[str, str], ...]


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean over images of |q(s) - q(t)|^2``, ``q(f) = sum_c f_c^2`` over positions, at unit length (Zagoruyko, Komodakis, ICLR 2017).

    Maps of shape ``(N, channels, *positions)``, or ``(N, positions, channels)`` for tokens; the numbers of channels may differ.
    """
    q_s, q_t = (
        nn.functional.normalize(f.float().square().sum(2 if f.dim() == 3 else 1).flatten(1), dim=1)
        for f in (student, teacher)
    )
    return (q_s - q_t).square().sum(1).mean()


def match(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean((s - t)^2) / var(t)``: hint learning (Romero et al., ICLR 2015) without its regressor, for maps of equal shape.

    Tying never changes a shape, so channel ``c`` of the student has its counterpart in channel ``c`` of the teacher. Maps are large:
    differences are taken in their own precision, and every eighth image gives the variance.
    """
    mean_square: Tensor = _MeanSquare.apply(student - teacher)
    return mean_square / teacher[::8].to(_sum_dtype(teacher)).var(correction=0).clamp_min(1e-6)


def _sum_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


class _MeanSquare(torch.autograd.Function):
    """``mean(x^2)``, at least in float32, in one pass forward and one backward, with nothing kept but ``x``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        norm: Tensor = torch.linalg.vector_norm(values, dtype=_sum_dtype(values))
        return norm.square() / values.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values: Tensor = ctx.saved_tensors[0]
        return values * (2 * gradient / values.numel())


FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"attention": attention, "match": match}
"""Name -> loss of one student's map and one teacher's map, a scalar averaged over the batch."""


def feature_loss(name: Features, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over pairs of maps (the student's, the teacher's), in float32."""
    return torch.stack([FEATURE_LOSSES[name](student, teacher) for student, teacher in maps]).mean()


@dataclass(frozen=True)
class Compared:
    """What is compared: the loss by name, and the modules (the student's, the teacher's) whose outputs go into it.

    Attributes:
        reason: why ``auto`` compares nothing.
    """

    loss: Features
    modules: Pairs = ()
    reason: str = ""


def compared(name: Features, student: nn.Module, teacher: nn.Module, images: Tensor, *, obstacle: str = "") -> Compared:
    """What is compared under a name; ``auto`` is ``match`` where that can be and no ``obstacle`` is named, else ``none``.

    Raises:
        InputError: what was asked for by name cannot be compared.
    """
    if name != "auto":
        return Compared(name, feature_pairs(name, student, teacher, images))
    if obstacle:
        return Compared("none", reason=obstacle)
    try:
        return Compared("match", feature_pairs("match", student, teacher, images))
    except InputError as error:
        return Compared("none", reason=str(error))


def feature_pairs(name: Features, student: nn.Module, teacher: nn.Module, images: Tensor) -> Pairs:
    """The modules (the student's, the teacher's) whose outputs are compared; none for ``none``.

    ``match`` takes every cut point of the student, and the module of that name in the teacher. ``attention`` takes the last cut point at
    each resolution that both have, as its paper does, and so compares networks of any two kinds.

    Raises:
        InputError: there is no cut point, or the teacher has no map of that shape there.
    """
    if name == "none":
        return ()
    ours, theirs = cut_points(student, images), cut_points(teacher, images)
    if not ours:
        raise InputError(
            "features need a map that all paths to the logits pass through, and no module of this model returns one",
            hint="pass --features none",
        )
    if name == "match":
        for module, shape in ours.items():
            if theirs.get(module) != shape:
                found = theirs.get(module, "no such map")
                raise InputError(
                    f"features 'match' compares maps of equal shape: {shape} in the student, {found} in the teacher",
                    where=f"module '{module}'",
                    hint="pass --features attention or none, or no other teacher",
                )
        return tuple((module, module) for module in ours)
    last, last_of_teacher = ({_positions(shape): module for module, shape in found.items()} for found in (ours, theirs))
    pairs = tuple((module, last_of_teacher[size]) for size, module in last.items() if size in last_of_teacher)
    if not pairs:
        raise InputError(
            f"student and teacher have no map of one resolution: {sorted(last)} and {sorted(last_of_teacher)}",
            hint="pass --features none",
        )
    for network, modules in zip((student, teacher), zip(*pairs, strict=True), strict=True):
        _require_channels_first(network, images, modules)
    return pairs


def _require_channels_first(model: nn.Module, images: Tensor, modules: Sequence[str]) -> None:
    """Refuse maps ``(N, height, width, channels)``: over which axis to sum could not be told from their shapes."""
    recording, _, returned = recorded(model, images)
    values = flow_of(recording).values
    for node, module in returned.items():
        value = values.get(node)
        if (
            module in modules
            and isinstance(value, Channels)
            and len(value.shape) > 3
            and value.varying not in ((), (1,))
        ):
            raise InputError(
                f"features 'attention' takes maps whose channels lie along axis 1, not along {value.varying[-1]}",
                where=f"module '{module}'",
                hint="pass --features match or none",
            )


@contextmanager
def captured(network: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While entered, a forward pass of ``network`` (or of what wraps it) leaves the outputs of ``modules`` here, by their names.

    Raises:
        InputError: at the end, where a module was not called.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: maps.update({name: output})

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
    if absent := [name for name in modules if name not in maps]:
        raise InputError("a module does not run in training", where=f"'{absent[0]}'", hint="pass --features none")


def cut_points(model: nn.Module, images: Tensor) -> dict[str, Shape]:
    """The modules at whose outputs maps are taken, in order, with the shape of that map for one image.

    Args:
        images: one image, shape ``(1, channels, height, width)``.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))
    >>> cut_points(net, torch.zeros(1, 1, 8, 8))
    {'1': (2, 6, 6), '2': (2, 3, 3)}
    """
    recording, logits, modules = recorded(model, images)
    nodes = list(recording.graph.nodes)
    aliased = {alias for node in nodes for alias in node.meta.get("aliased", ())}
    carrying, cuts = _cuts(nodes, logits)
    stretches: list[tuple[str, Shape] | None] = []
    before: fx.Node | None = None
    for node in cuts:
        if not (_keeps_positions(node) and [i for i in node.all_input_nodes if i in carrying] == [before]):
            stretches.append(None)
        shape: Shape = node.meta.get("shape", ())
        is_map = len(shape) > len(logits.meta["shape"]) and shape[0] == 1 and prod(_positions(shape[1:])) > 1
        drawn = has_trait(node.target, "random")
        if node in modules and is_map and not drawn and node not in aliased:
            stretches[-1] = (modules[node], shape[1:])
        before = node
    return dict(found for found in stretches if found is not None)


def recorded(model: nn.Module, images: Tensor) -> tuple[Recording, fx.Node, dict[fx.Node, str]]:
    """A forward pass, the node of its logits, and which module returns the value of a node."""
    calls: Counter[str] = Counter()
    made: dict[fx.Node, list[str]] = {}

    def watched(recorder: Recorder) -> nn.Module:
        def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def note(module: nn.Module, args: Any, output: Any) -> None:
                calls[name] += 1
                result = output if name else logits_of(output)
                if isinstance(result, Tensor) and (node := recorder.known(result)) is not None:
                    made.setdefault(node, []).append(name)

            return note

        handles.extend(module.register_forward_hook(watch(name)) for name, module in model.named_modules())
        return model

    handles: list[RemovableHandle] = []
    try:
        recording = record(model, images, watched)
    finally:
        for handle in handles:
            handle.remove()
    logits = next((node for node, names in made.items() if "" in names), None)
    if logits is None:
        raise InputError("how the logits come about cannot be followed", hint="pass --features none")
    single = {node: [name for name in names if name and calls[name] == 1] for node, names in made.items()}
    innermost = {node: names[0] for node, names in single.items() if names and node.op == "call_function"}
    return recording, logits, innermost


def _cuts(nodes: list[fx.Node], logits: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes that carry something of the images to the logits, and those of them that no edge leads past.

    What code that cannot be recorded hands out may hold anything: an edge leads to it from the images.
    """
    place = {node: index for index, node in enumerate(nodes)}
    sources = {node for node in nodes if node.op == "placeholder" or node.meta.get("unknown")}
    reached: set[fx.Node] = set()
    for node in nodes:
        if node in sources or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    needed = {logits}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    carrying = reached & needed
    furthest = max((place[node] for node in sources & carrying), default=0)
    cuts = []
    for node in nodes:
        if node in carrying:
            if place[node] >= furthest:
                cuts.append(node)
            furthest = max([furthest, *(place[user] for user in node.users if user in carrying)])
    return carrying, cuts


def _keeps_positions(node: fx.Node) -> bool:
    """Whether a call is element-wise or a normalisation."""
    return node.op == "call_function" and has_trait(node.target, "keeps_positions")


def _positions(shape: Shape) -> Shape:
    """Of a map of one image: height and width behind the channels, or the number of tokens before them."""
    return shape[:1] if len(shape) == 2 else shape[1:]
