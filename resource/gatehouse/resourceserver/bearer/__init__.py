"""Bearer tokens (RFC 6750): the keys, the verifier, and the gate that answers for both."""
