"""Work done ahead in processes of their own, given back in order.

``concurrent.futures`` rather than ``DataLoader``'s workers: an error keeps its type and its one line, and a worker that dies
is an error where the next result is asked for, not a ``RuntimeError`` that a signal handler raises anywhere in training.
Tensors come back through shared memory all the same, as importing torch arranges.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from pdc_fx.errors import InputError, PdcError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # results that each worker prepares before they are asked for

_prepare: Callable[[Any], Any]


def in_worker() -> bool:
    """Whether this process was started by :func:`in_order`."""
    return "_prepare" in globals()


def in_order(
    prepare: Callable[[Item], Result], items: Iterable[Item], workers: int, context: str | None = None
) -> Iterator[Result]:
    """Yield ``prepare(item)`` of each item, in order; at most ``2 * workers`` results wait at any time.

    Args:
        prepare: is sent to each worker once; must be picklable unless processes are forked.
        workers: processes; 0 works in this process, when a result is asked for.
        context: how processes start, ``fork``, ``forkserver`` or ``spawn``; the platform's own way when not given.

    Raises:
        InputError: ``workers`` is negative.
        PdcError: a worker died. What ``prepare`` raises comes through as it is.

    >>> list(in_order(abs, [-1, 2, -3], workers=0))
    [1, 2, 3]
    """
    if workers < 0:
        raise InputError("the number of data workers must not be negative", where=str(workers))
    return _in_processes(prepare, items, workers, context) if workers else map(prepare, items)


def _in_processes(
    prepare: Callable[[Item], Result], items: Iterable[Item], workers: int, context: str | None
) -> Iterator[Result]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(context), _start, (prepare,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_work, item))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PdcError(
            "a data worker process died",
            where=f"one of {workers}",
            hint="it was killed or ran out of memory (shared memory too, /dev/shm): use fewer workers or smaller batches",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(prepare: Callable[[Any], Any]) -> None:
    """In each worker, first of all."""
    global _prepare
    _prepare = prepare
    torch.set_num_threads(1)  # the workers share the cores; and OpenMP's threads do not survive a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    return _prepare(item)
