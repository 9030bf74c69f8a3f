"""Run a command that Linux kills when the process that asked for it ends: a script, started by its path.

python die_with_parent.py PARENT_PROCESS_ID COMMAND...

The request survives `exec`, so the command replaces this script and keeps its process id. Importing nothing but the
standard library makes it a matter of milliseconds; a `preexec_fn` would be unsafe beside threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def die_with(parent: int) -> None:
    """Ask Linux for SIGKILL at the end of the parent process; exit if it has ended already."""
    if sys.platform == "linux":
        # where the kernel forbids it, the process goes on without this protection
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the request
        sys.exit("The process that started this one has ended.")


def main(parent: int, command: list[str]) -> None:
    """Bind this process to the parent, then become the command."""
    die_with(parent)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
