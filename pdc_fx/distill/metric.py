"""Steps in the metric of what a convolution reads.

Written out over the taps of its kernel, a convolution is ``y = W x`` at every position, with ``d`` numbers in ``x``. What comes out of
ReLUs is positive, and neighbouring pixels are alike, so that the second moments of ``x`` differ by orders of magnitude from one
direction to another, and plain descent crawls in most of them. K-FAC (Martens, Grosse, ICML 2015; for convolutions Grosse, Martens,
ICML 2016) takes the Fisher matrix of ``W`` for a Kronecker product of moments of gradients and of inputs. Of its half that knows the
inputs the square root is taken, halfway between plain descent and K-FAC:

    A = E[x x^T]
    G  ->  c G (A + damping tr(A) / d I)^(-1/2),      c such that the norm of G stays

The whole inverse fits faint directions, and what is noise in them, as fast as all others; between the two lies what errs least on new
images (Amari et al., ICLR 2021, who interpolate in the same way).
``A`` is also what the least squares of :mod:`pdc_fx.passes.calibrate` invert: training goes on in the metric in which it was begun.
A linear layer reads one position an image, too few to know ``A`` from a batch, and keeps its gradient. So does a convolution without a
batch norm right behind it, which takes out the scale of a weight and so bears steps of any size: without, a rate that plain descent can
just take is too much in another metric.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdc_fx.distill.processes import Processes
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.statistics import Norm, Reader, Watch, run_watched

DAMPING = 0.1
EVERY = 100
IMAGES = 64
SAMPLES = 8192
WIDEST = 1152
"""Numbers that one convolution reads at a position, 128 channels under 3 x 3 taps; those that read more keep their gradient."""


class _Moments(Watch):
    """The second moments of what each convolution reads, ``(groups, d, d)``, summed over the uses of its weight.

    ``normalised`` are the weights right behind which a batch norm runs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, SAMPLES)
        self.found: dict[str, Tensor] = {}
        self.normalised: set[str] = set()
        self._last: tuple[str, Tensor, int] | None = None

    def before(self, reader: Reader) -> None:
        if reader.window is None or reader.matrix()[0, 0].numel() > WIDEST:
            return
        x = reader.patches().float().flatten(2)
        moments = torch.einsum("sgi,sgj->gij", x, x) / len(x)
        self.found[reader.weight] = moments + self.found.get(reader.weight, 0)

    def after(self, reader: Reader, output: Tensor) -> None:
        self._last = reader.weight, output, output._version

    def norm(self, norm: Norm) -> None:
        if self._last is None:
            return
        weight, output, version = self._last
        if (
            norm.values.data_ptr() == output.data_ptr() and output._version == version
        ):  # nothing was done to it in place
            self.normalised.add(weight)


class InputMetric:
    """Changes the gradients of convolutions as said above; every hundredth step the moments are taken anew, from its own images.

    Args:
        model: what is trained. Moments are those in eval mode.
        processes: the moments are means over all of them, so that they go on alike.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    >>> metric = InputMetric(model, Processes())
    >>> images = torch.randn(64, 3, 8, 8) * torch.tensor([10.0, 1, 1])[:, None, None]
    >>> model(images).sum().backward()
    >>> model[0].weight.grad = torch.ones(4, 3, 1, 1)
    >>> metric.step(0, images)
    >>> loud, quiet, _ = model[0].weight.grad[0].flatten().tolist()
    >>> loud < quiet / 4
    True
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self.model, self.processes = model, processes
        self.roots: dict[str, Tensor] = {}

    def step(self, number: int, images: Tensor) -> None:
        """After the backward pass of a step. ``number`` counts from 0, ``images`` has shape ``(N, channels, height, width)``."""
        if number % EVERY == 0:
            self._refresh(images[:IMAGES])
        tensors = named_tensors(self.model)
        for name, root in self.roots.items():
            gradient = tensors[name].grad
            if gradient is None:
                continue
            rows = gradient.reshape(len(root), -1, root.shape[-1])
            moved = rows @ root.to(rows.dtype)
            moved = moved * (rows.norm() / moved.norm().clamp_min(torch.finfo(rows.dtype).tiny))
            gradient.copy_(moved.reshape(gradient.shape))

    def state_dict(self) -> dict[str, Tensor]:
        """The inverse roots, by the names of the weights."""
        return dict(self.roots)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with these."""
        self.roots = {name: root.to(self.processes.device) for name, root in state.items()}

    def _refresh(self, images: Tensor) -> None:
        watch = _Moments(self.model)
        run_watched(self.model, images, watch)
        self.roots = {
            name: _inverse_root(self.processes.averaged(moments))
            for name, moments in watch.found.items()
            if name in watch.normalised
        }


def _inverse_root(moments: Tensor) -> Tensor:
    """``(A + damping tr(A) / d I)^(-1/2)`` for each group; what reads nothing but zeros keeps its gradient."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(1)
    values, vectors = torch.linalg.eigh(moments)
    damped = values.clamp_min(0) + torch.where(mean > 0, DAMPING * mean, 1.0)[:, None]
    root: Tensor = (vectors * damped.rsqrt()[:, None]) @ vectors.mT
    return root
