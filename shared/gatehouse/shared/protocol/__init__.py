"""What both servers must agree on: tokens, scopes, resources, status lists. No I/O."""
