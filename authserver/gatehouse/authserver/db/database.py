"""The authorization server's database."""

from gatehouse.shared.service.migrations import MigratedDatabase, Schema


class Database(MigratedDatabase):
    """Clients, resources, keys, and the audit log."""

    schema = Schema("gatehouse.authserver.db:migrations", "authserver init", landmark="client")
