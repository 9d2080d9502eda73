"""The tools that this server offers, one file per noun, and their scopes."""

from gatehouse.resource.catalogue import Catalogue, Scope
from gatehouse.resource.tools import environments, identity, organizations

CATALOGUE = Catalogue(
    "Gatehouse",
    scopes=[
        Scope("env:read", "See the environments of the workspace"),
        Scope("env:write", "Create environments", implies=("env:read",)),
        Scope("org:read", "See the organizations of an environment"),
        Scope("org:write", "Create organizations", implies=("org:read",)),
    ],
    groups=[identity.tools, environments.tools, organizations.tools],
    instructions="Call whoami to see what this client may do. Tools that it may not call are not listed.",
)
