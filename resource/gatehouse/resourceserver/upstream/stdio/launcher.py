"""Becomes a program, beside a keeper: a process that kills the program's process group when the gateway is gone.

`program.py` runs this file in a new session. Arguments: the read end of a pipe whose other end only the gateway has;
empty, or the user id, the group id and the supplementary groups to run as, separated by commas; the names of the
variables that the program gets, separated by `=`; and the command, whose first part is a path.

The kernel closes the gateway's end of the pipe however the gateway ends, so the keeper also works after a SIGKILL. It
is a member of the group that it kills, so no other process can have got the group's id, and it exists before the
program does, so there is no moment without it. PR_SET_PDEATHSIG would reach neither the children of the program nor,
after a change of user, always the program; and it would also act when a thread of the gateway ends.
"""

import os
import resource
import signal
import sys

_DESCRIPTORS = 1024
"""How many descriptors a program may have, unless it raises the limit itself."""


def _start_keeper(gateway: int) -> None:
    """Start the keeper as an orphan, because a program that waits for its children does not expect another one."""
    if middle := os.fork():
        os.waitpid(middle, 0)
        os.close(gateway)
        return
    if os.fork():
        os._exit(0)
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    # Otherwise the pipes of the program would stay open as long as the keeper runs.
    os.closerange(0, 3)
    os.read(gateway, 1)
    os.kill(0, signal.SIGKILL)


def main() -> None:
    """Start the keeper, and execute the command."""
    gateway, user, variables, *command = sys.argv[1:]
    # Before the change of user, so that a program with a user of its own cannot end its keeper.
    _start_keeper(int(gateway))
    # A core dump would write what callers sent to a disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The gateway may have a higher limit, with which programs that use select() break.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, most), most))
    if user:
        uid, gid, *groups = map(int, user.split(","))
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    # Python ignores these, and a program inherits what is ignored.
    for default in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(default, signal.SIG_DFL)
    environment = {name: os.environ[name] for name in variables.split("=")}
    try:
        os.execve(command[0], command, environment)  # noqa: S606 - a shell is not wanted
    except OSError as error:
        sys.exit(f"{command[0]} cannot be executed: {error.strerror}")


if __name__ == "__main__":
    main()
