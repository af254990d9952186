"""Detections in another order.

A detector returns one row per object, sorted by score. Two scores that differ by less than the tolerance may come out in
either order, and then every output of the two rows has changed places. So rows are put in the order of the reference, by
an assignment that makes the sum of their distances least, on one condition: an output by which they may have been sorted
(the scores) agrees within the tolerance *before* that. Whatever was exchanged had equal scores then, as far as the
tolerance can tell, and every output is still compared in full after.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pdc_fx.export.difference import relative_error

Arrays = Mapping[str, NDArray[np.generic]]


def in_order(expected: Arrays, actual: Arrays, tolerance: float) -> tuple[dict[str, NDArray[np.generic]], int]:
    """``actual`` with rows where ``expected`` has them, and how many rows had to move.

    Args:
        expected, actual: the outputs that hold one row per object, ``rows x ...`` each, by name.
        tolerance: relative, of a single output.

    >>> boxes, scores = np.array([[0.0], [5.0], [9.0]]), np.array([0.9, 0.8, 0.8])
    >>> in_order({"boxes": boxes, "scores": scores}, {"boxes": boxes[[0, 2, 1]], "scores": scores}, 1e-4)[1]
    2
    >>> in_order({"boxes": boxes}, {"boxes": boxes[[0, 2, 1]]}, 1e-4)[1]  # sorted by nothing that is known
    0
    """
    same = dict(actual)
    sizes = {array.shape[0] for array in (*expected.values(), *actual.values())}
    if len(sizes) != 1 or any(expected[name].shape != actual[name].shape for name in expected):
        return same, 0
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    keys = [name for name, array in expected.items() if array.ndim == 1 and array.dtype.kind == "f"]
    agreed = any(errors[name] <= tolerance for name in keys)
    if not agreed or all(error <= tolerance for error in errors.values()):
        return same, 0
    from scipy.optimize import linear_sum_assignment

    rows = sizes.pop()
    distance = np.zeros((rows, rows))
    for name, array in expected.items():
        want, got = (_flat(side) for side in (array, actual[name]))
        scale = float(np.abs(want).max()) or 1.0
        distance += np.abs(want[:, None] - got[None]).max(axis=2) / scale
    if not np.isfinite(distance).all():
        return same, 0
    _, order = linear_sum_assignment(distance)
    return {name: array[order] for name, array in actual.items()}, int((order != np.arange(rows)).sum())


def _flat(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array.astype(np.float64).reshape(array.shape[0], -1)
