"""The authorization server's database."""

from gatehouse.shared.schema import Schema
from gatehouse.shared.sessions import SessionDatabase


class Database(SessionDatabase):
    """Clients, resources, keys, and the audit trail."""

    schema = Schema("gatehouse.authserver.store:migrations", "authserver init", landmark="client")
