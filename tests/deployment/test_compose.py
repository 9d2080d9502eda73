"""The compose file: its parts fit together, and its containers have as few rights as the images need."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from support.documents import ROOT

from gatehouse.authserver.settings import Settings as AuthServerSettings
from gatehouse.resourceserver.settings import Settings as ResourceServerSettings

FOLDER = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    return parsed


def test_every_service_names_only_what_is_declared(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for mounted in service.get("volumes", ()):
            source = mounted.partition(":")[0]
            assert source in compose["volumes"] or source == "./secrets/tls" or (FOLDER / source).is_file(), source
    used = {secret for service in services.values() for secret in service.get("secrets", ())}
    assert used == set(compose["secrets"])


def test_the_settings_of_the_containers_exist(compose: dict[str, Any]) -> None:
    known = {
        settings.variable(field)
        for settings in (AuthServerSettings, ResourceServerSettings)
        for field in settings.model_fields
    }
    for name, service in compose["services"].items():
        if "server" in name:
            for variable, value in service["environment"].items():
                assert variable.removesuffix("_FILE") in known, variable
                if variable.endswith("_FILE"):
                    assert value.removeprefix("/run/secrets/") in service["secrets"], name


def test_the_servers_have_no_rights_that_they_do_not_need(compose: dict[str, Any]) -> None:
    servers = {name: service for name, service in compose["services"].items() if "server" in name}
    assert len(servers) == 4
    for name, service in servers.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["networks"] == ["inside"], name
        assert "ports" not in service, name
    assert compose["networks"]["inside"]["internal"] is True
    for name, service in compose["services"].items():
        assert "latest" not in service["image"], name


@pytest.mark.threat("T-152")
def test_only_the_proxy_names_the_addresses_of_clients(compose: dict[str, Any]) -> None:
    """Source: review of issue 13. Any container of the network could invent the address of a client."""
    proxy = compose["services"]["proxy"]["networks"]["inside"]["ipv4_address"]
    assert compose["services"]["authserver"]["environment"]["AUTHSERVER_TRUSTED_PROXIES"] == proxy
    [network] = compose["networks"]["inside"]["ipam"]["config"]
    assert ip_address(proxy) in ip_network(network["subnet"])
    assert ip_address(proxy) not in ip_network(network["ip_range"]), "another container could get it first"
