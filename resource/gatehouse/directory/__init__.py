"""The directory that the tools work on: workspaces with their members and environments, and what is in those."""
