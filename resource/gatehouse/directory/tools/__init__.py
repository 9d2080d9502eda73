"""The tools of the directory."""
