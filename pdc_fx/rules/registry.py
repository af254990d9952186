"""Which rule belongs to which torch function, operator or module class, and what is known of it beside the rule: its traits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from pdc_fx.rules.base import Rule
from pdc_fx.trace import LEAVES

_RULES: dict[Any, Rule] = {}
_MOVES: set[Any] = set()

Trait = Literal["keeps_positions", "arithmetic", "bounds", "counts_sets", "fills", "repeats", "random"]
"""What passes want to know of a function, whatever its rule; :func:`rule` says what each means."""
_TRAITS: dict[Any, frozenset[Trait]] = {}

_NAMESPACES = (torch, torch.Tensor, torch.nn.functional, torch._C._nn, torch.special, torch._VF)


def functions(names: str) -> list[Any]:
    """Every torch function known under these names (as ``torch.add``, ``Tensor.add``, ``F.relu`` ...), in-place forms included."""
    found = []
    for name in names.split():
        spelled = (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__")
        matches = [getattr(space, s) for space in _NAMESPACES for s in spelled if callable(getattr(space, s, None))]
        if not matches:
            raise LookupError(f"no torch function is called {name!r}")
        found.extend(matches)
    return found


def getter(name: str) -> Any:
    """The function behind a tensor property, as it is recorded: ``getter("T")``."""
    return (
        vars(torch._C.TensorBase)[name].__get__
        if name in vars(torch._C.TensorBase)
        else vars(torch.Tensor)[name].__get__
    )


def keys_of(target: Any) -> list[Any]:
    """What a target stands for in the registry.

    Raises:
        TypeError: it is something that a recording never holds.

    >>> keys_of("torchvision.roi_align my_library::scale")
    ['torchvision.roi_align', 'my_library.scale']
    """
    if isinstance(target, str):
        words = [word.replace("::", ".") for word in target.split()]
        return [key for word in words for key in ([word] if "." in word else functions(word))]
    if isinstance(target, type) and issubclass(target, nn.Module):
        if target in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, fx.GraphModule):
            raise TypeError(f"{target.__name__} only holds other modules: give the class that computes something")
        return [target]
    if isinstance(name := getattr(target, "_qualname", None), str):  # from torch.library.custom_op
        return [name.replace("::", ".")]
    hint = {
        nn.Module: "a module itself is no target: give its class",
        torch.jit.ScriptFunction: "a TorchScript function is not recorded: give a rule to a module class that calls it",
    }
    for kind, text in hint.items():
        if isinstance(target, kind):
            raise TypeError(text)
    if isinstance(target, type) and issubclass(target, torch.autograd.Function):
        raise TypeError(
            "an autograd function is not recorded, what it calls is: give a rule to a module class that applies it"
        )
    if not callable(target):
        raise TypeError(f"expected a function, an operator, its name or a module class, and got {target!r}")
    return [key_of(target)]


def key_of(target: Any) -> Any:
    """Operators are known by their qualified name, so that the library that has them need not be imported."""
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket
    return str(target) if isinstance(target, torch._ops.OpOverloadPacket) else target


def refuse_classes(keys: Iterable[Any], why: str) -> None:
    """Raise :class:`TypeError` where a key is a module class."""
    if any(isinstance(key, type) for key in keys):
        raise TypeError(why)


def rule(*targets: Any, moves: bool = False, traits: Iterable[Trait] = ()) -> Callable[[Rule], Rule]:
    """Register a rule, a function from a :class:`Site` to the abstract value of the result; docs/writing-rules.md shows how.

    Args:
        targets: what the rule is for, any of

            - a torch function, or a string of names of such (``"relu gelu"``: as ``torch.relu``, ``Tensor.relu``, ``F.relu``, in place),
            - an operator (``torch.ops.my_library.scale``, one of its overloads, or what ``torch.library.custom_op`` gave) or its
              qualified name, ``"my_library::scale"``, for which its library need not be there,
            - a subclass of ``torch.nn.Module``, which then is a *leaf*: its call is recorded as one, and what it does inside is not
              looked at. A subclass of it that has a ``forward`` of its own is not meant.
        moves: the function only puts the values of its first argument into other places, whatever they are (it is run on
            integers to see where), so that it, or a chain of such functions, may be replaced by a gather where its written-out
            form does not fit the smaller network.
        traits: facts about the function. It keeps them when another rule takes the place of this one; none is taken back.

            - ``keeps_positions``: each value is made from what lies at the same position, and at most from statistics of the whole,
            - ``arithmetic``: numbers among its arguments are operands, ``x / 3``, and must not follow the number of channels,
            - ``bounds``: numbers among its arguments shape a curve, ``clamp(x, 0, 6)``; also these must stay what they are,
            - ``counts_sets``: its second argument is a number of sets of channels and must stay, unless each channel is a set of its own,
            - ``fills``: its second or third argument, or ``fill_value``, is a number that is every value of the result,
            - ``repeats``: it repeats values at any size that it is asked for,
            - ``random``: it draws random numbers in training.

    Raises:
        TypeError: a target is something that no recording holds.
        LookupError: torch has no function of this name, or there is no such trait.

    >>> class Doubled(nn.Module):
    ...     def forward(self, x):
    ...         return x * 2
    >>> @rule(Doubled)
    ... def doubled(site: Site) -> Value:
    ...     return site.channels(site.argument(0, "x")).then(site.key)
    >>> rule_for(Doubled) is doubled
    True
    """
    keys = [key for target in targets for key in keys_of(target)]
    if moves:
        refuse_classes(keys, "a leaf module cannot be replaced by a gather")
    facts = frozenset(traits)
    if unknown := sorted(facts.difference(get_args(Trait))):
        raise LookupError(f"no trait is called {unknown[0]!r}: there are {', '.join(get_args(Trait))}")

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(keys, function))
        _TRAITS.update((key, _TRAITS.get(key, frozenset()) | facts) for key in keys)
        if moves:
            _MOVES.update(keys)
        LEAVES.update(key for key in keys if isinstance(key, type))
        return function

    return register


def moves(target: Any) -> bool:
    """Whether a function only moves the values of its first argument."""
    return key_of(target) in _MOVES


def has_trait(target: Any, trait: Trait) -> bool:
    """Whether this was said of a torch function, an operator or a module class when a rule was registered for it.

    >>> has_trait(torch.Tensor.add, "arithmetic"), has_trait(torch.relu, "arithmetic")
    (True, False)
    """
    return trait in _TRAITS.get(key_of(target), ())


def rule_for(target: Any) -> Rule | None:
    """The rule of a torch function, an operator or a module class, or None."""
    return _RULES.get(key_of(target))


def registered() -> dict[Any, Rule]:
    """A copy of the registry: torch function -> rule."""
    return dict(_RULES)
