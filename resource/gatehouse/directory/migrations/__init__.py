"""The migrations of the directory's tables, which stand beside the gateway's in one database."""

from gatehouse.shared.service.migrations import Schema

SCHEMA = Schema(
    "gatehouse.directory:migrations", "resourceserver init", landmark="workspace", version_table="directory_version"
)
