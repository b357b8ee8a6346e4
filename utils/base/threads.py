"""Threads that compute results ahead and return them in order."""

import atexit
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from utils.base.errors import UserError

GRACE = 2.0  # seconds that threads get to finish their current item
READ_TIMEOUT = 120.0  # seconds until a missing result is an error
Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple[Future, Any]  # a future result, and its item


def read_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int = 4,
    describe: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Results in the order of the items; `workers` threads compute up to `ahead` in advance.

    An error in a thread is raised here; a result that takes too long raises a UserError with
    describe(item). A thread that hangs in a read does not prevent the process from ending.
    """
    if workers == 0:
        yield from map(function, items)
        return
    jobs: SimpleQueue[Job | None] = SimpleQueue()  # None: no more jobs
    threads = [Thread(target=work, args=(function, jobs), daemon=True) for _ in range(workers)]
    pending: deque[Job] = deque()

    def close() -> None:
        for future, _ in pending:
            future.cancel()
        for _ in threads:
            jobs.put(None)
        deadline = time.monotonic() + GRACE
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    atexit.register(close)  # a daemon thread that still works at Python's exit crashes it
    try:
        for thread in threads:
            thread.start()
        for item in items:
            pending.append((Future(), item))
            jobs.put(pending[-1])
            if len(pending) > ahead:
                yield wait(*pending.popleft(), describe)
        while pending:
            yield wait(*pending.popleft(), describe)
    finally:
        close()
        atexit.unregister(close)


def work(function: Callable, jobs: SimpleQueue[Job | None]) -> None:
    """Body of a thread: put results and errors into their futures until None arrives."""
    while (job := jobs.get()) is not None:
        future, item = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)
        del job, future, item  # or an idle thread would keep an image in memory


def wait(future: Future[Result], item: Item, describe: Callable[[Item], str]) -> Result:
    try:
        return future.result(timeout=READ_TIMEOUT)
    except TimeoutError as error:
        what = f"no answer for {READ_TIMEOUT:.0f} s"
        raise UserError(f"{describe(item)}: {what}. Check the disk or network drive") from error
