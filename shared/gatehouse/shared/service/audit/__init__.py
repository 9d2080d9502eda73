"""The audit log of both servers: its events, how they are written and chained, and the commands that read it."""
