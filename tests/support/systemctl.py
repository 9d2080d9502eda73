"""A stand-in for systemctl: runs what units say, with their environment, credentials and state folders.

    SYSTEMCTL_ROOT=FOLDER python systemctl.py enable --now NAME...

Everything is below the folder: units in etc/systemd/system, state in var/lib. Sandboxing, users and dependencies are
left out.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STOP_TIMEOUT = 30.0

root = Path(os.environ.get("SYSTEMCTL_ROOT", "/nowhere"))


class Unit:
    def __init__(self, name: str) -> None:
        self.name = name
        self.pid_file = root / "run" / f"{name}.pid"
        self.credentials = root / "run" / "credentials" / name
        units = root / "etc/systemd/system"
        files = (units / f"{name}.service", *sorted((units / f"{name}.service.d").glob("*.conf")))
        text = "\n".join(file.read_text() for file in files)
        text = text.replace("%d", str(self.credentials)).replace("%S", str(root / "var/lib"))
        self.lines = [line.partition("=")[::2] for line in text.splitlines() if "=" in line and line[0] != "#"]

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.lines if name == key]

    def environment(self) -> dict[str, str]:
        variables = dict(value.split("=", 1) for value in self.all("Environment"))
        for file in self.all("EnvironmentFile"):
            variables |= dict(line.split("=", 1) for line in Path(file).read_text().splitlines())
        # Of the machine: where to find programs, and whom to trust.
        return {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE") if name in os.environ} | variables

    def pid(self) -> int | None:
        return int(self.pid_file.read_text()) if self.pid_file.exists() else None

    def start(self) -> None:
        shutil.rmtree(self.credentials, ignore_errors=True)
        self.credentials.mkdir(parents=True, mode=0o700)
        for name, _, source in (value.partition(":") for value in self.all("LoadCredential")):
            (self.credentials / name).write_bytes(Path(source).read_bytes())
            (self.credentials / name).chmod(0o400)
        for state in " ".join(self.all("StateDirectory")).split():
            (root / "var/lib" / state).mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = next(iter(self.all("WorkingDirectory")), str(root))
        with (root / f"{self.name}.log").open("ab") as log:
            options = {"cwd": folder, "env": self.environment(), "stdout": log, "stderr": log}
            for command in self.all("ExecStartPre"):
                subprocess.run(shlex.split(command), check=True, **options)
            [command] = self.all("ExecStart")
            process = subprocess.Popen(shlex.split(command), start_new_session=True, **options)
        self.pid_file.write_text(str(process.pid))

    def stop(self) -> None:
        if (pid := self.pid()) is None:
            return
        self.pid_file.unlink()
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + STOP_TIMEOUT
        while is_running(pid):
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not stop")
            time.sleep(0.1)

    def reload(self) -> None:
        for command in self.all("ExecReload"):
            subprocess.run(shlex.split(command.replace("$MAINPID", str(self.pid()))), check=True)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main() -> None:
    command, *names = [argument for argument in sys.argv[1:] if argument != "--now"]
    # All at once, as systemd does.
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(run, command, unit) for unit in map(Unit, names)]:
            done.result()


def run(command: str, unit: Unit) -> None:
    if command in {"reload", "try-reload-or-restart"}:
        unit.reload()
    if command in {"stop", "restart"}:
        unit.stop()
    if command in {"enable", "start", "restart"}:
        unit.start()


if __name__ == "__main__":
    main()
