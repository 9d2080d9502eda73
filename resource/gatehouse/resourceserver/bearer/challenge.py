"""`WWW-Authenticate: Bearer ...` (RFC 6750 3; RFC 9728 5.1; MCP 2026-07-28, "Scope Selection Strategy")."""

from collections.abc import Iterable
from dataclasses import dataclass

from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.scopes import format_scope, parse_scope
from gatehouse.shared.service.settings import InvalidSettings


def baseline_scopes(settings: Settings, catalogue: Catalogue) -> frozenset[str]:
    """Return the scopes that every 401 names.

    Raises:
        InvalidSettings: one of them is not in the catalogue.
    """
    if settings.baseline_scopes is None:
        return frozenset(catalogue.scopes)
    baseline = parse_scope(settings.baseline_scopes)
    if unknown := sorted(baseline - catalogue.scopes.keys()):
        raise InvalidSettings(
            f"RESOURCESERVER_BASELINE_SCOPES: {unknown[0]} is not a scope of the catalogue. "
            f"There are: {', '.join(catalogue.scopes)}."
        )
    return baseline


@dataclass(frozen=True, slots=True)
class Challenge:
    """Builds the challenges of one resource. All values are constants or validated scopes, so none needs escaping."""

    resource_metadata: str

    def no_token(self, scope: Iterable[str]) -> str:
        """Challenge a request without a token. It has no error code (RFC 6750 3.1)."""
        return self._build(scope)

    def invalid_token(self, scope: Iterable[str]) -> str:
        """Challenge an expired, revoked, malformed or foreign token. The text is the same for all."""
        return self._build(
            scope, error="invalid_token", error_description="The access token is not valid here. Obtain a new one."
        )

    def insufficient_scope(self, scope: Iterable[str]) -> str:
        """Challenge a token with too few scopes: name every scope that the operation needs."""
        return self._build(
            scope, error="insufficient_scope", error_description="The operation needs every scope named in scope."
        )

    def _build(self, scope: Iterable[str], **error: str) -> str:
        parameters = {**error, "scope": format_scope(scope), "resource_metadata": self.resource_metadata}
        return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)
