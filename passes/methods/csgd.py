"""Centripetal SGD (Ding, Ding, Guo, Han, CVPR 2019, eq. 3).

For a filter ``F`` of cluster ``H``, with weight decay ``eta`` and strength ``eps``,

    dF = - mean_H(dL/dF) - eta F + eps (mean_H(F) - F)

The first term is the same for all members, so that their deviations from the centroid only shrink, by ``1 - lr (eta + eps)`` a step,
whatever the loss does; the decay is the optimizer's. Batch norm, biases and all else that rides on a channel is drawn with a tenth of the
strength (as the paper's batch norm) and has no decay in our optimizer. With momentum the pull goes through momentum like the gradient. The
equation is SGD's: under an optimizer that scales each element (AdamW) the centroid attracts, at another rate.

What is left of the deviations at the end is removed by ``snap()``. The paper trains for hundreds of epochs at ``eps = 3e-3``; the
default here is made for runs of some thousand steps.
"""

from pdc_fx.passes.methods.base import Method

CSGD = Method("csgd", held=False, pull=0.05, rest=0.1)
