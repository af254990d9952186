"""A network whose modules have names that are no plain words, for everything that shows or writes names."""

from __future__ import annotations

import torch
from torch import nn

NAMES = (
    "<script>document['title']='taken'</script>",
    "\"onload='x' &amp; </script",
    "层\u202eünï\ud800😀",
    "{{ 7 * 7 }}",
)


SHOWN = (*NAMES[:2], "层\\u202eünï\\ud800😀", NAMES[3])
"""The same as a page shows them."""


class Odd(nn.Module):
    """Modules of every name but a plain one."""

    def __init__(self) -> None:
        super().__init__()
        for number, name in enumerate(NAMES):
            self.add_module(name, nn.Conv2d(3 if number == 0 else 8, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x
