"""Free training with reconstruction at intervals (Niu et al., PDC, Image and Vision Computing 2023).

Filters train freely. At intervals they are clustered anew, and each is set to the centroid of its cluster,

    F_i <- 1 / m * sum_H F_j ,

the removed share rising to its final value in equal parts. From the last of these rounds on the clusters are fixed and tied as in
``hard``. The paper gives the principle (its abstract is what is public); the schedule is ours: ten rounds, the last after 40% of
the run.
"""

from pdc_fx.passes.methods.base import Method

PDC = Method("pdc", rounds=10, settled=0.4, held=False)
