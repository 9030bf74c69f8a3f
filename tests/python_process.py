"""Python programs in processes of their own, forked from one that has imported Lightning, which takes ten seconds."""

import atexit
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from tests.shortcuts import take_shortcuts

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Program:
    """What a process is to run, and the files that receive its output."""

    command: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    stdout: str
    stderr: str

    def run(self) -> None:
        for number, path in ((1, self.stdout), (2, self.stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))  # noqa: SIM115
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.path[:0] = filter(None, self.environment.get("PYTHONPATH", "").split(os.pathsep))
        first, *others = self.command
        if first == "-m":
            sys.argv, sys.path[:0] = others, [self.cwd]
            runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv, sys.path[:0] = ["-c", *others[1:]], [self.cwd]
            exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[:0] = [first, *others], [str(Path(first).parent)]
            runpy.run_path(first, run_name="__main__")


class Server:
    """A process that runs programs in forks of itself: it has imported Lightning, and nothing else has happened in it.

    It is started before this package is imported, whose import some programs look at, and before tests run.
    """

    def __init__(self) -> None:
        import lightning.pytorch  # noqa: F401

        self._connection, other = Pipe()
        self.process = _fork(lambda: self._serve(other))
        other.close()

    def run(self, programs: Sequence[Program]) -> list[int]:
        """Run programs at the same time, and return their exit statuses; that of a signal is negative."""
        self._connection.send(programs)
        statuses: list[int] = self._connection.recv()
        return statuses

    def _serve(self, connection: Connection) -> None:
        self._connection.close()  # so that the end of the tests ends this process, too
        _warn_as_an_interpreter_does()
        take_shortcuts()
        while True:
            try:
                programs = connection.recv()
            except EOFError:
                return
            processes = [_fork(program.run) for program in programs]
            connection.send([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes])


_servers: list[Server] = []


def start_server() -> None:
    """Start the process that programs are forked from, once."""
    if not _servers:
        _servers.append(Server())


def run_python(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run `python arguments`, where these are a script, `-m` and a module, or `-c` and code, and what these take.

    Args:
        *arguments: Turned into strings.
        cwd: The program's working directory.
        env: All environment variables of the program; None for those of this process.
        ranks: In how many processes to run it, as Lightning's `ddp` starts a script once more for each device.

    Returns:
        The exit status of the first process that failed, and what the first of all wrote.

    """
    command = [str(argument) for argument in arguments]
    environment = dict(os.environ if env is None else env)
    if ranks > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    with tempfile.TemporaryDirectory() as folder:
        programs = []
        for rank in range(ranks):
            outputs = [os.path.join(folder, f"{name}-{rank}") for name in ("stdout", "stderr")]
            local = {"LOCAL_RANK": str(rank)} if ranks > 1 else {}
            programs.append(Program(command, os.path.abspath(cwd), environment | local, *outputs))
        start_server()
        statuses = _servers[0].run(programs)
        texts = [Path(path).read_text(encoding="utf-8") for path in (programs[0].stdout, programs[0].stderr)]
    return subprocess.CompletedProcess(command, next(filter(None, statuses), 0), *texts)


def _warn_as_an_interpreter_does() -> None:
    """Undo that pytest makes errors of warnings and collects them."""
    warnings.resetwarnings()
    for category in (ResourceWarning, ImportWarning, PendingDeprecationWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    warnings.showwarning = show


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _fork(run: Callable[[], None]) -> int:
    """Return the number of a new process that runs a function and ends as an interpreter does."""
    process = os.fork()
    if process:
        return process
    atexit._clear()  # what the other process registered is not for this one
    status = 1
    try:
        run()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if not isinstance(ended.code, int | None):
            sys.stderr.write(f"{ended.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
