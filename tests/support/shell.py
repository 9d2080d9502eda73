"""The `authserver` command, run in this process with its files in one folder."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from gatehouse.authserver.cli import main
from support.authserver import ISSUER, RESOURCE

CREATE = ["client", "create", "--name", "agent", "--resource", RESOURCE, "--scope", "env:read"]


class Shell:
    """Runs the command with its files in one folder, on an SQLite file there unless a URL is given."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self.folder = folder
        self.database = folder / "var" / "authserver.db"
        self.environment = {
            "AUTHSERVER_ISSUER": ISSUER,
            "AUTHSERVER_DATABASE_URL": database_url or f"sqlite:///{self.database}",
            "AUTHSERVER_KEYS_DIR": str(folder / "keys"),
        }
        self.outputs: list[str] = []

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(main, arguments, env=self.environment)
        self.outputs.append(result.output)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    def text(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--output", "json"))

    def refusal(self, *arguments: str, code: int = 1) -> str:
        result = self.run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr
