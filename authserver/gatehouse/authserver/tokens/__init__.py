"""The tokens that are issued."""
