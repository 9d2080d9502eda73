"""The address that a server listens on is checked before the start; errors name its setting."""

from contextlib import closing
from socket import create_server

import pytest

from gatehouse.shared.service.addresses import bind_probe, in_use


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_an_address_that_is_free_can_be_bound_afterwards(host: str) -> None:
    bind_probe(f"{host}:0", "X_BIND")
    assert not in_use(f"{host}:0", "X_BIND")


def test_an_address_in_use_stops_serve_but_passes_check() -> None:
    """`check` can also be run beside a running server."""
    with closing(create_server(("127.0.0.1", 0))) as server:
        bind = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as failure:
            bind_probe(bind, f"X_BIND={bind}")
        assert failure.value.filename == f"X_BIND={bind}"
        assert in_use(bind, "X_BIND")


@pytest.mark.parametrize("bind", ["192.0.2.1:80", "no-such-host.invalid:80"])
def test_an_address_of_another_machine_fails_in_both(bind: str) -> None:
    for ask in (bind_probe, in_use):
        with pytest.raises(OSError) as failure:
            ask(bind, "X_BIND")
        assert failure.value.filename == "X_BIND"
