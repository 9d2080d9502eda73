"""The resource server's database as commands and the audit writer use it: migrated, and checked before use."""

from sqlalchemy import URL

from gatehouse.shared.service import migrations
from gatehouse.shared.service.migrations import MigratedDatabase, Schema, SchemaMismatch


class Database(MigratedDatabase):
    """The gateway's tables, and those of the catalogue that it serves."""

    schema = Schema("gatehouse.resourceserver.db:migrations", "resourceserver init", landmark="idempotency_key")

    def __init__(
        self, url: URL, catalogue_schema: Schema | None = None, *, pool_size: int = 1, patient: bool = False
    ) -> None:
        """Without the schema of a catalogue, only the gateway's tables are migrated and checked."""
        super().__init__(url, pool_size=pool_size, patient=patient)
        self.catalogue_schema = catalogue_schema

    def migrate(self) -> None:
        """Create or upgrade both schemas. Raises SchemaMismatch as MigratedDatabase does."""
        self._require_own_version_table()
        super().migrate()
        if self.catalogue_schema is not None:
            migrations.upgrade(self.url, self.catalogue_schema)

    def require_current(self) -> None:
        """Refuse a database if either schema is not current. Raises SchemaMismatch as MigratedDatabase does."""
        self._require_own_version_table()
        super().require_current()
        if self.catalogue_schema is not None:
            self._require_usable(self.catalogue_schema)

    def _require_own_version_table(self) -> None:
        """Refuse a catalogue whose revisions would be confused with the gateway's: its tables would never be made."""
        if self.catalogue_schema is not None and self.catalogue_schema.version_table == self.schema.version_table:
            raise SchemaMismatch(
                f"The catalogue's Schema uses the gateway's version table, {self.schema.version_table}. Give it a "
                f'table of its own: Schema("{self.catalogue_schema.migrations}", ..., version_table="NAME_version")'
            )
