"""The batches of a run in their order, made ahead by processes beside the one that trains.

A batch is a function of the seed and its step, so who makes it does not matter. Workers are spawned: they hold neither
the run's lock nor a device, import no torch, and end with the process that began them, however that ends.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread

from cartridges.pocket.batches import Batch, ChatEncoder, make_batch
from cartridges.pocket.recipe import PocketConfig

AHEAD = 4  # batches that wait for each worker or are in its hands


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step of a run."""

    encoder: ChatEncoder
    config: PocketConfig

    def __call__(self, step: int) -> Batch:
        shape = self.config.shape_at(step)
        num_targets = int(shape.rows * shape.length * self.config.target_share)
        key = (self.config.seed, step)
        return make_batch(self.encoder, key, shape.rows, shape.length, num_targets, shape.context_share)


@contextmanager
def batches_from(make: BatchMaker, step: int, num_workers: int = 0) -> Iterator[Iterator[Batch]]:
    """The batches from `step` to the end of the run; with no workers each is made when it is asked for.

    Asking raises BrokenProcessPool once a worker has died. A script that asks for workers needs the usual
    `if __name__ == "__main__":`.
    """
    steps = range(step, make.config.num_steps)
    if not num_workers:
        yield map(make, steps)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_begin, initargs=(make,))
    try:
        yield _in_order(lambda step: pool.submit(_make, step).result, steps, AHEAD * num_workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(begin: Callable[[int], Callable[[], Batch]], steps: range, num_ahead: int) -> Iterator[Batch]:
    to_begin = iter(steps)
    begun = deque(map(begin, islice(to_begin, num_ahead)))
    while begun:
        batch = begun.popleft()()
        begun.extend(map(begin, islice(to_begin, 1)))
        yield batch


def _begin(make: BatchMaker) -> None:
    """What a worker does first."""
    global _maker
    _maker = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains, which ends this one
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _make(step: int) -> Batch:
    return _maker(step)


_maker: BatchMaker
