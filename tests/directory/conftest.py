"""Callers of the directory's tools, in workspaces on one server."""

import pytest
from support.directory import Caller
from support.resourceserver import ResourceServer


@pytest.fixture
async def caller(resourceserver: ResourceServer) -> Caller:
    """A caller in an empty workspace."""
    return Caller(resourceserver, "acme")


@pytest.fixture
async def acme(caller: Caller) -> Caller:
    """The caller, in a workspace with two environments."""
    caller.here = (await caller("create_environment", name="here"))["environment_id"]
    caller.there = (await caller("create_environment", name="there"))["environment_id"]
    return caller


@pytest.fixture
async def other(resourceserver: ResourceServer) -> Caller:
    """A caller in another, empty workspace."""
    return Caller(resourceserver, "globex")
