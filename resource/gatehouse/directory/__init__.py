"""The bundled catalogue: workspaces with their members, environments and organizations, and the tools for them."""
