"""An upstream that speaks Streamable HTTP.

`http_upstream.py` is the entry. A call gets a session of its caller (`caller_sessions.py`), becomes a message in the
protocol version that the upstream speaks (`client.py`), and is exchanged for an answer (`exchange.py`, `answer.py`).
"""
