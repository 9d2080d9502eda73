"""Reading the log in a test, and restoring the configuration of logging after it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

Read = Callable[[], str]
"""Returns what was logged since the last call."""


def use_test_logs() -> None:
    """Print events to standard output, with tracebacks as Python prints them.

    By default, structlog lets rich draw every traceback with all local variables, which takes up to seconds.
    """
    structlog.reset_defaults()
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


@contextmanager
def logging_put_back() -> Iterator[None]:
    """Undo what `configure_logs` does when the block ends: handlers, levels of all loggers, structlog's settings."""
    root = logging.getLogger()
    handlers, level, levels = root.handlers, root.level, _levels()
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        for name in _levels():
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
        use_test_logs()


def _levels() -> dict[str, int]:
    known = logging.root.manager.loggerDict.items()
    return {name: logger.level for name, logger in known if isinstance(logger, logging.Logger)}
