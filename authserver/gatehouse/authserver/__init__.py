"""The authorization server: registers clients, issues access tokens, publishes metadata and keys."""
