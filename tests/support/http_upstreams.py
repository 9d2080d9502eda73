"""The gateway's client of an upstream over HTTP, a refused call, and the progress of a call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream
from gatehouse.resourceserver.upstream.upstream import UpstreamError
from support.upstreams import call_of, upstream_settings


@asynccontextmanager
async def running(url: str, **changes: Any) -> AsyncIterator[HttpUpstream]:
    """Yield the client of an upstream at a URL. `changes` are to its settings."""
    upstream = HttpUpstream(upstream_settings(url, **changes))
    async with upstream.running():
        yield upstream


class Progressed:
    """Collects the progress that a caller is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float | None, str | None]] = []

    async def __call__(self, progress: float, total: float | None, text: str | None) -> None:
        self.steps.append((progress, total, text))


async def refused(upstream: HttpUpstream, **arguments: Any) -> UpstreamError:
    """Return the error of a call that does not succeed."""
    with pytest.raises(UpstreamError) as caught:
        await upstream.call_tool(call_of(**arguments))
    return caught.value
