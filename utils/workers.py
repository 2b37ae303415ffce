"""One function over many jobs in worker processes, with one progress bar; the first error stops all."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from .errors import InputError

J = TypeVar("J")
JOBS_AHEAD = 4  # a worker: enough that none waits, few enough that memory does not grow with the number of jobs

_work: Callable | None = None  # in a worker process: what it does


def run_all(
    work: Callable[[J], None],
    jobs: list[J],
    workers: int,
    weigh: Callable[[J], int],
    done: int = 0,
    title: str = "",
) -> None:
    """Call `work` on every job, in any order, in `workers` processes (1: in this one).

    `work` is pickled once a process. The bar counts what `weigh` gives, from `done` on; it shows on terminals only.
    Raises the first exception of any job, when all processes have stopped.
    """
    finished = _in_processes(work, jobs, workers) if workers > 1 and len(jobs) > 1 else _here(work, jobs)
    total = done + sum(map(weigh, jobs))
    with tqdm(total=total, initial=done, desc=title, unit=" expr", disable=None, smoothing=0.1) as bar:
        for job in finished:
            bar.update(weigh(job))


def _here(work: Callable[[J], None], jobs: list[J]) -> Iterator[J]:
    for job in jobs:
        work(job)
        yield job


def _in_processes(work: Callable[[J], None], jobs: list[J], workers: int) -> Iterator[J]:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that another thread may hold
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (work,))
    queue, running = iter(jobs), {}
    try:
        while True:
            for job in islice(queue, JOBS_AHEAD * workers - len(running)):
                running[pool.submit(_call, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; run again with fewer --workers (work done stays)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(work: Callable) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us in an orderly way
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(job: object) -> None:
    _work(job)
