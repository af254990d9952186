"""What a model and its example inputs must be to be run and changed here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pdc_fx.errors import TraceError
from pdc_fx.trace.forward import described


def require_usable(model: object) -> None:
    """Raise :class:`TraceError` for what is no module that can run here and be changed; the message says what to pass instead."""
    if not isinstance(model, nn.Module):
        hint = "make an instance of it" if isinstance(model, type) else "pass the module itself"
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TraceError(f"expected a torch.nn.Module, got {name}", hint=hint)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TraceError("the model is wrapped for several processes", hint="pass model.module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a TorchScript module cannot be analysed", hint="pass the module it was scripted from")
    if isinstance(model, fx.GraphModule) and "eval" in vars(model):  # torch.export forbids it there
        raise TraceError("a program from torch.export cannot be analysed", hint="pass the module it was exported from")
    for name, module in model.named_modules():
        if ".nn.quantized" in type(module).__module__ or ".nn.intrinsic.quantized" in type(module).__module__:
            raise TraceError(
                "a quantized model cannot be analysed: its weights are packed",
                where=f"'{name}': {type(module).__name__}",
                hint="compress the float model, then quantize the result",
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise TraceError(
                "the model is lazy: it takes its shapes from the first input",
                where=f"'{name}'",
                hint="call it once, then load its weights",
            )
        if tensor.is_meta:
            raise TraceError(
                "the model's tensors are on the meta device and hold no values",
                where=f"'{name}'",
                hint="use model.to_empty(...) and load weights",
            )


def require_values(args: tuple[Any, ...]) -> None:
    """Raise :class:`TraceError` for example inputs that hold no numbers."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    lacking = any(t.is_meta for t in tensors)
    if lacking or (tensors and not any(t.numel() for t in tensors)):
        raise TraceError(
            "an example input is on the meta device and holds no values" if lacking else "the example input is empty",
            where=described(args),
            hint="give a tensor as in use, torch.randn(...) say",
        )
