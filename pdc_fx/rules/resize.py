"""Module attributes that repeat the size of a tensor, and must follow when it shrinks. One row per module class."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Resize = Callable[[nn.Module, tuple[int, ...]], None]


def _conv(module: nn.Module, before: tuple[int, ...]) -> None:
    """``weight: (out, in / groups, *kernel)``, transposed ``(in, out / groups, *kernel)``; a depthwise one has its groups shrink."""
    assert isinstance(module, _ConvNd)
    first, second = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels:
        module.groups = first * module.groups // before[0]
    second *= module.groups
    module.in_channels, module.out_channels = (first, second) if module.transposed else (second, first)


def _linear(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


def _bilinear(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, nn.Bilinear)
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _norm(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, _NormBase)
    sized = next(t for t in (module.weight, module.running_mean) if t is not None)
    module.num_features = sized.shape[0]


def _prelu(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, nn.PReLU)
    module.num_parameters = module.weight.shape[0]


def _layer_norm(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, nn.GroupNorm)
    if module.num_groups == module.num_channels:
        module.num_groups = module.weight.shape[0]
    module.num_channels = module.weight.shape[0]


TABLE: list[tuple[type[nn.Module], Resize]] = [
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_NormBase, _norm),
    (nn.PReLU, _prelu),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
]


def resize_rule(*classes: type[nn.Module]) -> Callable[[Resize], Resize]:
    """Register how the attributes of a module class that repeat the size of a tensor follow when it shrinks.

    The decorated function is called with the smaller module and with the old shape of its main tensor, the one of most axes that
    shrank: ``module.channels = module.scale.shape[0]``. It is for subclasses too, and goes before what was registered earlier.

    Args:
        classes: subclasses of ``torch.nn.Module``.

    Raises:
        TypeError: something else was given.

    >>> import torch
    >>> class Scale(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.channels, self.scale = channels, nn.Parameter(torch.ones(channels))
    >>> @resize_rule(Scale)
    ... def scaled(module, before):
    ...     module.channels = module.scale.shape[0]
    >>> smaller = Scale(8)
    >>> smaller.scale = nn.Parameter(torch.ones(4))
    >>> resize(smaller, (8,))
    >>> smaller.channels
    4
    """
    given: tuple[object, ...] = classes
    if others := [kind for kind in given if not (isinstance(kind, type) and issubclass(kind, nn.Module))]:
        raise TypeError(f"expected subclasses of torch.nn.Module, and got {others[0]!r}")

    def register(function: Resize) -> Resize:
        TABLE[:0] = [(kind, function) for kind in classes]
        return function

    return register


def resize(module: nn.Module, before: tuple[int, ...]) -> None:
    """Bring the size attributes of ``module`` in line with its tensors; ``before`` is the old shape of its main tensor."""
    for kind, update in TABLE:
        if isinstance(module, kind):
            update(module, before)
            return


def resize_bare(module: nn.Module, given: tuple[int, ...]) -> None:
    """Bring the size attributes of a normalisation without tensors in line with the shape of its input."""
    if isinstance(module, _NormBase):
        module.num_features = given[1]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = given[len(given) - len(module.normalized_shape) :]
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = given[1]
        module.num_channels = given[1]


def follows(module: nn.Module) -> bool:
    """Whether the sizes that ``module`` passes to its function are attributes that are brought in line: not in a forward of one's own."""
    forward = type(module).forward
    torchs = str(getattr(forward, "__module__", "")).startswith("torch.nn.")
    return any(isinstance(module, kind) and (torchs or forward is kind.forward) for kind, _ in TABLE)
