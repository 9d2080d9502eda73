"""The MCP server behind the gateway, which knows nothing of OAuth: how it is reached, and how its tools are served.

`serving.py` keeps the catalogue of a worker as the policy and the upstream say, with tools whose calls `forwarding.py`
sends to an `Upstream` (`upstream.py`): over `http` or `stdio`.
"""
