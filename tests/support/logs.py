"""Restores the configuration of logging after a test."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


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
        structlog.reset_defaults()


def _levels() -> dict[str, int]:
    known = logging.root.manager.loggerDict.items()
    return {name: logger.level for name, logger in known if isinstance(logger, logging.Logger)}
