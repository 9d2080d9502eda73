"""The authorization server's database."""

from gatehouse.shared.service.migrations import Schema
from gatehouse.shared.service.sessions import SessionDatabase


class Database(SessionDatabase):
    """Clients, resources, keys, and the audit log."""

    schema = Schema("gatehouse.authserver.db:migrations", "authserver init", landmark="client")
