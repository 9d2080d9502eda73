"""What the authorization server and the resource server must agree on, and nothing else."""
