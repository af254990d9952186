"""Merging step by step, tied all the while.

As ``pdc``, clusters are formed in rounds at a rising rate; unlike there, what was merged stays merged: between rounds gradients are
averaged inside clusters, as in ``hard``. Members that are identical lie at distance zero, so the next round can only join
clusters, and each round merges what training has made alike since the one before. No round undoes the work of training in between,
and each is small enough to be healed before the next.
"""

from pdc_fx.passes.methods.base import Method

PROGRESSIVE = Method("progressive", rounds=20, settled=0.5)
