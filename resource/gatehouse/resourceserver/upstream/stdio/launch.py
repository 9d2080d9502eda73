"""What a program is started with: its command, its variables, its folder and its user."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy, StdioTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable

_LAUNCHER: Final = str(Path(__file__).with_name("launcher.py"))

_NEEDED_BY_PYTHON: Final = "LD_LIBRARY_PATH"
"""Some installations of Python need it. The launcher does not pass it on."""


class Started(NamedTuple):
    """A process that was started."""

    process: "subprocess.Popen[bytes]"
    exited: int
    """A descriptor that becomes readable when the process has ended (pidfd_open)."""
    keeper: int
    """A descriptor. When it is closed, the process group is killed (launcher.py)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What every process of an upstream's program is started with."""

    command: tuple[str, ...]
    """Without a shell."""
    environment: Mapping[str, str]
    """All variables of the program."""
    directory: Path | None
    user: str
    """The user id, the group id and the supplementary groups, separated by commas; empty for those of this process."""

    def start(self) -> Started:
        """Start a process in a session of its own, with pipes.

        Raises:
            UpstreamUnavailable: the command is not found, or the system refuses a process or its descriptors.
        """
        path = self._find()
        try:
            gateway, keeper = os.pipe()
        except OSError as error:
            raise _not_started(error) from None
        try:
            return self._start(path, gateway, keeper)
        except OSError as error:
            os.close(keeper)
            raise _not_started(error) from None
        finally:
            os.close(gateway)

    def _find(self) -> str:
        """Return the path of the command. One with a slash is relative to the folder of the program."""
        name = self.command[0]
        if "/" in name:
            return name
        found = shutil.which(name, path=self.environment["PATH"])
        if found is None:
            raise UpstreamUnavailable(f"the command {name} is not in PATH")
        return str(Path(found).absolute())

    def _start(self, path: str, gateway: int, keeper: int) -> Started:
        needed = {name: os.environ[name] for name in (_NEEDED_BY_PYTHON,) if name in os.environ}
        launcher = (sys.executable, "-I", "-S", _LAUNCHER, str(gateway), self.user, "=".join(self.environment))
        process = subprocess.Popen(  # noqa: S603 - the command is the operator's
            (*launcher, path, *self.command[1:]),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env={**needed, **self.environment},
            start_new_session=True,
            pass_fds=(gateway,),
        )
        try:
            return Started(process, os.pidfd_open(process.pid), keeper)
        except OSError:
            with process:
                process.kill()
            raise


def _not_started(error: OSError) -> UpstreamUnavailable:
    return UpstreamUnavailable(f"the program cannot be started: {error.strerror}")


def stdio_transport(settings: UpstreamSettings) -> StdioTransport:
    """Return the transport of an upstream that is a program. Raises TypeError for another one."""
    if not isinstance(settings.transport, StdioTransport):
        raise TypeError("the upstream is not a program")
    return settings.transport


def check_launch(settings: UpstreamSettings) -> None:
    """Check that the programs can be started as the user that the policy names.

    Raises:
        InvalidPolicy: there is no such user, or this process may not start a program as it.
    """
    if isinstance(settings.transport, StdioTransport):
        prepare_launch(settings.transport, {})


def program_variables(transport: StdioTransport, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the program gets: PATH, and those that the policy names, as far as they are set."""
    named = {name: variables[name] for name in transport.environment if name in variables}
    return {"PATH": variables.get("PATH", os.defpath), **named}


def prepare_launch(transport: StdioTransport, variables: Mapping[str, str]) -> Launch:
    """Return what the program is started with. `variables` are as from `program_variables`.

    Raises:
        InvalidPolicy: there is no such user, or this process may not start a program as it.
    """
    return Launch(transport.command, variables, transport.directory, _user_ids(transport.user))


def _user_ids(name: str | None) -> str:
    if name is None:
        return ""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise InvalidPolicy(f'upstream.user: this machine has no user "{name}". Create it, or remove `user`.') from None
    if user.pw_uid == os.geteuid():
        return ""
    # With CAP_SETUID alone, the program would keep the capabilities: only a change from root drops them.
    if os.geteuid() != 0:
        raise InvalidPolicy(
            f'upstream.user: only root can start a program as another user. Run this server as "{name}" and remove '
            "`user`, or run it as root."
        )
    ids = (user.pw_uid, user.pw_gid, *os.getgrouplist(name, user.pw_gid))
    return ",".join(map(str, ids))
