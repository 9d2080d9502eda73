"""How tools and resources are declared: what a module of tools imports."""

from gatehouse.resourceserver.catalogue.declaration import (
    ANY_VALID_TOKEN,
    CATALOGUE_URI,
    Catalogue,
    Resource,
    Scope,
    Tool,
    ToolFailed,
    ToolGroup,
    ToolScopes,
    declare_resource,
)
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue

__all__ = [
    "ANY_VALID_TOKEN",
    "CATALOGUE_URI",
    "Catalogue",
    "InvalidCatalogue",
    "Resource",
    "Scope",
    "Tool",
    "ToolFailed",
    "ToolGroup",
    "ToolScopes",
    "declare_resource",
]
