"""Workload identity: agents authenticate with a token that their platform signs (docs/workload-identity.md).

A platform, such as a cluster or a CI service, is a trusted issuer. Trust rules map its tokens to registered clients.
The identity is federated, and the rights are not: grants, claims and revocation are those of the client.
"""
