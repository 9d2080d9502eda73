"""The directory that the tools work on: workspaces, environments, organizations."""
