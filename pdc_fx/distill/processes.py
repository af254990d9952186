"""One process or many: what a training run needs to know of the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from pdc_fx.errors import InputError

NO_DOUBLE = ("mps",)
"""Kinds of devices without float64, in which exactness is measured: the CPU takes their place."""
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together, each on its own share of every batch.

    Attributes:
        rank: the number of this one; 0 reports and writes.
        count: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of_environment(cls) -> Processes:
        """As ``torchrun`` or ``accelerate launch`` started them; Accelerate joins them and picks the device.

        Raises:
            InputError: the launcher asks for parameters that are sharded (FSDP, DeepSpeed), which tying cannot follow.
        """
        from accelerate import PartialState

        # several processes without a GPU are joined (over gloo) only where Accelerate is told that the CPU is meant
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        with _output_to_errors() if several else nullcontext():
            state = PartialState(cpu=True) if several and not torch.accelerator.is_available() else PartialState()
        kind = str(getattr(state.distributed_type, "value", state.distributed_type))
        if kind in _SHARDED or _sharded_by_the_launcher():
            raise InputError(
                "parameters that are sharded over processes (FSDP, DeepSpeed) cannot be tied: a cluster's filters may lie on several",
                hint="use plain data parallelism: torchrun, or accelerate launch --multi_gpu",
            )
        device = torch.device("cpu") if state.device.type in NO_DOUBLE else state.device
        return cls(state.process_index, state.num_processes, device)

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def distributed(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """The module with gradients averaged over all processes.

        Args:
            unused: whether parameters may go without a gradient (auxiliary heads that the loss does not read).
        """
        if self.count == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers (running statistics are each process's own between two steps)."""
        self._share(model.buffers())

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers, wherever the model lies."""
        self._share(chain(model.parameters(), model.buffers()))

    def _share(self, tensors: Iterable[Tensor]) -> None:
        if self.count == 1:
            return
        for tensor in tensors:
            here = tensor.detach().to(self.device)  # NCCL moves nothing that lies on the CPU
            torch.distributed.broadcast(here, 0)
            tensor.detach().copy_(here)


@contextmanager
def _output_to_errors() -> Iterator[None]:
    """What C++ prints goes to standard error: gloo says on standard output that it is connected (PyTorch 2.9), where ``--json`` prints."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _sharded_by_the_launcher() -> bool:
    """Whether ``accelerate launch`` was asked for FSDP or DeepSpeed, which it tells by the environment."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1") for name in _SHARDED[:3])
