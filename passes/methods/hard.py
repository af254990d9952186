"""Clusters of the plan, tied from the first step.

For a cluster ``H`` of ``m`` filters with gradients ``g_i``, every member moves by the same

    dF = - lr / m * sum_H g_i

so that members that start equal stay equal, momentum included: centripetal SGD (Ding et al., CVPR 2019, eq. 3) at infinite strength.

What this is for the small network that is left: a reader's slices get equal gradients ``g`` and are summed, so the summed slice moves
by ``m lr g``; a producer's filter gets ``1 / m`` of the gradient that it would have alone. Tied training is training of the small
network with steps of its own for readers and producers. ``pdc_fx.compress`` therefore trains the small network itself
(:mod:`pdc_fx.distill.compact`); :func:`pdc_fx.tie` in a loop of one's own keeps all shapes.
"""

from pdc_fx.passes.methods.base import Method

HARD = Method("hard")
