"""What a recorded call has as its target: a torch function, or the class of a leaf module."""

from __future__ import annotations

from torch import Tensor, nn
from torch.overrides import resolve_name

LEAVES: set[type[nn.Module]] = set()
"""Module classes that are recorded as one call each; a rule for such a class enters it here."""


def leaf_class(module: nn.Module) -> type[nn.Module] | None:
    """The class under which ``module`` is a leaf, or None. A subclass with a forward of its own is another operator."""
    # at the latest nn.Module is found, whose forward raises
    kind = next(kind for kind in type(module).__mro__ if kind in LEAVES or "forward" in vars(kind))
    return kind if kind in LEAVES else None


def function_name(target: object) -> str:
    """The name of a recorded function as a user would write it, e.g. ``torch.nn.functional.relu``."""
    name = resolve_name(target) if callable(target) else None
    return name or getattr(target, "__qualname__", None) or repr(target)


def memory_of(*tensors: Tensor) -> None:
    """Stands in a recording for whatever made a tensor in the memory of known ones unseen: dlpack, a view, ``torch.vmap``."""
