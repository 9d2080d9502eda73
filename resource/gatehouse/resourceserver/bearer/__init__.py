"""Bearer tokens (RFC 6750): the issuer's keys and status lists, the verifier, and the gate that uses them."""
