"""Cluster plans drawn at random: whatever holds for them holds for any plan of the groups."""

from __future__ import annotations

import numpy as np

from pdc_fx.ir import ChannelGroups, ClusterPlan, Integers, first_appearance


def random_clusters(generator: np.random.Generator, channels: int, width: int, *, balanced: bool) -> Integers:
    """``width`` clusters of ``channels``, by number; of one size where they are to be balanced.

    >>> random_clusters(np.random.default_rng(0), 6, 3, balanced=True)
    array([0, 1, 1, 2, 0, 2])
    """
    spare = np.arange(width, channels) % width if balanced else generator.integers(0, width, channels - width)
    return first_appearance(generator.permutation(np.concatenate([np.arange(width), spare])))


def random_halves(groups: ChannelGroups, seed: int) -> ClusterPlan:
    """A plan that puts the channels of every group into random clusters, half as many as channels."""
    generator = np.random.default_rng(seed)
    size = {number: groups.cluster_sizes(number)[1] for number in groups.balanced}
    clusters = (
        random_clusters(
            generator,
            group.channels,
            max(1, group.channels // (2 if group.balance is None else size[group.balance])),
            balanced=group.balance is not None,
        )
        for group in groups.groups
    )
    return ClusterPlan(groups, tuple(clusters), "random", {"seed": seed})


def random_widths(groups: ChannelGroups, seed: int) -> ClusterPlan:
    """A plan with a random number of clusters in every group: what fits only even halves must not pass for fitting.

    Two or more remain where that is possible, for one channel looks like none to anything that broadcasts.
    """
    generator = np.random.default_rng(seed)
    size = {}
    for number, members in sorted(groups.balanced.items()):
        sizes = groups.cluster_sizes(number)[1:]
        smallest = min(groups.groups[i].channels for i in members)
        size[number] = int(generator.choice([s for s in sizes if smallest // s > 1] or sizes[:1]))

    def clusters(channels: int, balance: int | None) -> Integers:
        if balance is not None:
            return random_clusters(generator, channels, channels // size[balance], balanced=True)
        width = int(generator.integers(min(2, channels - 1), channels))
        return random_clusters(generator, channels, width, balanced=False)

    return ClusterPlan(groups, tuple(clusters(g.channels, g.balance) for g in groups.groups), "random", {"seed": seed})
