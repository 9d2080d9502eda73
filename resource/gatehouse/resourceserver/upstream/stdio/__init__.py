"""An upstream that is a program, and speaks MCP over its standard input and output.

`stdio_upstream.py` runs one process for each caller (`program.py`). In a server, it runs in the owner process
(`owner_server.py`), which the master process starts (`owner_process.py`) and the workers call (`owner_client.py`).
"""
