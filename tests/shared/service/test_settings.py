"""The fields of both servers: defaults, and values that are refused because of what they would expose."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from support.settings import problems_of

from gatehouse.authserver.settings import Settings as AuthServerSettings
from gatehouse.resourceserver.settings import Settings as ResourceServerSettings
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.settings_reading import load_settings


def test_the_defaults_serve_on_loopback() -> None:
    authserver, resource = load_settings(AuthServerSettings), load_settings(ResourceServerSettings)
    assert (authserver.issuer, authserver.bind, authserver.token_ttl) == (
        "http://127.0.0.1:9000",
        "127.0.0.1:9000",
        300,
    )
    assert authserver.issuer == resource.issuer
    assert resource.resource == "http://127.0.0.1:8000/mcp"


def test_settings_do_not_change_after_the_start() -> None:
    settings = load_settings(AuthServerSettings)
    with pytest.raises(ValidationError):
        settings.issuer = "https://evil.example"  # type: ignore[misc]


def test_the_sealing_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY", "hunter2")
    settings = load_settings(AuthServerSettings)
    assert settings.sealing_key is not None
    assert settings.sealing_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings) + str(settings.model_dump())


@pytest.mark.parametrize(
    ("settings_class", "prefix"), [(AuthServerSettings, "AUTHSERVER"), (ResourceServerSettings, "RESOURCESERVER")]
)
def test_plain_http_is_not_offered_beyond_this_machine(
    settings_class: type[AuthServerSettings | ResourceServerSettings], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(settings_class)
    monkeypatch.setenv(f"{prefix}_BIND", "0.0.0.0:9000")
    with pytest.raises(InvalidSettings, match=f"^{prefix}_BIND=0.0.0.0:9000: plain http is for this machine only"):
        load_settings(settings_class)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/.well-known/mcp", "/m%63p"])
def test_a_resource_cannot_have_a_reserved_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At /livez, the endpoint would be served without the checks of Host and Origin."""
    monkeypatch.setenv("RESOURCESERVER_RESOURCE", "https://mcp.example.com/mcp")
    assert load_settings(ResourceServerSettings)
    monkeypatch.setenv("RESOURCESERVER_RESOURCE", f"https://mcp.example.com{path}")
    [(name, problem)] = problems_of(ResourceServerSettings).items()
    assert name == f"RESOURCESERVER_RESOURCE=https://mcp.example.com{path}"
    assert problem.startswith("has a path that this server reserves")


@pytest.mark.threat("T-161")
@pytest.mark.parametrize(
    ("bind", "problem"),
    [
        ("9100", "must be HOST:PORT"),
        ("8.8.8.8:9100", "must be a loopback or private address"),
        ("[2606:4700::1111]:9100", "must be a loopback or private address"),
        ("10.0.0.5:9000", "must have another port than AUTHSERVER_BIND"),
    ],
)
def test_an_address_for_metrics_that_is_public_or_taken_is_refused(
    bind: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHSERVER_METRICS_BIND", bind)
    assert problems_of(AuthServerSettings)[f"AUTHSERVER_METRICS_BIND={bind}"].startswith(problem)


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:9100", "10.0.0.5:9100", "[fd00::1]:9100", "authserver:9100", "0.0.0.0:9100"]
)
def test_an_address_for_metrics_is_private_or_a_name(bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(AuthServerSettings).metrics_bind is None
    monkeypatch.setenv("AUTHSERVER_METRICS_BIND", bind)
    assert load_settings(AuthServerSettings).metrics_bind == bind


def test_metrics_name_at_most_a_hundred_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESOURCESERVER_METRICS_CLIENTS", " ".join(f"agent_{number}" for number in range(101)))
    [problem] = problems_of(ResourceServerSettings).values()
    assert problem.startswith("must be at most 100 client_ids")


@pytest.mark.parametrize("name", ["TLS_CERTIFICATE", "TLS_KEY"])
def test_a_certificate_needs_its_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHSERVER_ISSUER", "https://as.example.com")
    monkeypatch.setenv(f"AUTHSERVER_{name}", "a.pem")
    assert problems_of(AuthServerSettings) == {"AUTHSERVER_TLS_CERTIFICATE, AUTHSERVER_TLS_KEY": "set both, or neither"}


def test_a_server_with_a_certificate_has_an_https_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS_CERTIFICATE", "TLS_KEY"):
        monkeypatch.setenv(f"RESOURCESERVER_{name}", "a.pem")
    assert "change that to https" in problems_of(ResourceServerSettings)["RESOURCESERVER_TLS_CERTIFICATE"]
    monkeypatch.setenv("RESOURCESERVER_RESOURCE", "https://mcp.example.com/mcp")
    assert load_settings(ResourceServerSettings).tls_key == Path("a.pem")
