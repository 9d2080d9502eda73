"""Who the clients are, and the proof that a request comes from one."""
