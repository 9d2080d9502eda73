"""How tools and resources are declared: what a module of tools imports."""

from gatehouse.resourceserver.catalogue.catalogue import CATALOGUE_URI, Catalogue
from gatehouse.resourceserver.catalogue.declaration import (
    ANY_VALID_TOKEN,
    Resource,
    Scope,
    ToolGroup,
    ToolScopes,
    declare_resource,
)
from gatehouse.resourceserver.catalogue.providers import Progress, Provider, ProviderCall, Transactions, provider
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.catalogue.tool import Tool, ToolFailed

__all__ = [
    "ANY_VALID_TOKEN",
    "CATALOGUE_URI",
    "Catalogue",
    "InvalidCatalogue",
    "Progress",
    "Provider",
    "ProviderCall",
    "Resource",
    "Scope",
    "Tool",
    "ToolFailed",
    "ToolGroup",
    "ToolScopes",
    "Transactions",
    "declare_resource",
    "provider",
]
