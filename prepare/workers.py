"""One function over many jobs in worker processes, with one progress bar; the first error stops all."""

import multiprocessing
import signal
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from typing import TypeVar

from utils.cli import end_with_parent, progress_bar
from utils.errors import InputError

J = TypeVar("J")
R = TypeVar("R")
JOBS_AHEAD = 4  # a worker: enough that none waits, few enough that memory does not grow with the number of jobs
_work: Callable | None = None  # in a worker process: what it does


def stop_in_order() -> None:
    """Make the first SIGINT, SIGTERM or SIGHUP a KeyboardInterrupt and later ones nothing.

    These would break off the clean-up; Python then waits for ever for worker processes that nobody told to end.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)

    def stop(number, frame) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in numbers:
        signal.signal(each, stop)


def run_all(
    work: Callable[[J], R], jobs: list[J], workers: int, weigh: Callable[[J], int], done: int = 0, **bar
) -> list[R]:
    """What `work` returns of every job, in any order, from `workers` processes (1: from this one).

    `work` is pickled once a process. A `progress_bar(**bar)` counts what `weigh` gives, from `done` on.
    Raises the first exception of any job, when all processes have stopped.
    """
    alone = workers == 1 or len(jobs) <= 1
    finished = ((job, work(job)) for job in jobs) if alone else _in_processes(work, jobs, workers)
    total, results = done + sum(map(weigh, jobs)), []
    with closing(finished), progress_bar(total=total, initial=done, smoothing=0.1, **bar) as shown:
        for job, result in finished:
            results.append(result)
            shown.update(weigh(job))
    return results


def _in_processes(work: Callable[[J], R], jobs: list[J], workers: int) -> Generator[tuple[J, R], None, None]:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that another thread may hold
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (work,))
    queue, running = iter(jobs), {}
    try:
        while True:
            # Workers that this starts inherit that SIGINT is blocked: the parent answers it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                running |= {pool.submit(_call, job): job for job in islice(queue, JOBS_AHEAD * workers - len(running))}
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps as memory ran out; run again with fewer --workers (work done stays)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(work: Callable) -> None:
    global _work
    _work = work
    end_with_parent()


def _call(job: object) -> object:
    return _work(job)
