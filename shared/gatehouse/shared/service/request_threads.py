"""Threads for what requests must wait for. In a process that stops, they refuse a call as an overload does."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from gatehouse.shared.service.deadline import DeadlineExceeded

P = ParamSpec("P")
T = TypeVar("T")


class RequestThreads(ThreadPoolExecutor):
    """A pool of threads that can be stopped while connections still deliver requests.

    An executor would cancel the calls that wait, and so the tasks of their requests, which would get no response. It
    would fail later calls with RuntimeError, which looks like a fault of the server.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._stopped = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in a thread. Its result is DeadlineExceeded if the pool stops before it is called.

        Raises:
            DeadlineExceeded: the pool has stopped; or the system has no thread left, and it may be called later.
        """
        try:
            return super().submit(self._call, partial(fn, *args, **kwargs))
        except RuntimeError:
            raise DeadlineExceeded from None

    def _call(self, function: Callable[[], T]) -> T:
        if self._stopped:
            raise DeadlineExceeded
        return function()

    def stop(self) -> None:
        """Wait for the calls that run. Those that wait for a thread, and later ones, end with DeadlineExceeded."""
        self._stopped = True
        self.shutdown()
