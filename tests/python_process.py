"""Python programs in processes of their own, forked from one that has imported Lightning, which takes ten seconds."""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.shortcuts import take_shortcuts

ROOT = Path(__file__).parent.parent

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lightning.pytorch"])  # and not this package, whose import some programs look at


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
        processes, outputs = [], []
        for rank in range(ranks):
            outputs.append([os.path.join(folder, f"{name}-{rank}") for name in ("stdout", "stderr")])
            local = {"LOCAL_RANK": str(rank)} if ranks > 1 else {}
            processes.append(SERVER.Process(target=_run, args=(command, str(cwd), environment | local, *outputs[-1])))
            processes[-1].start()
        for process in processes:
            process.join()
        texts = [Path(path).read_text(encoding="utf-8") for path in outputs[0]]
    return subprocess.CompletedProcess(command, next((p.exitcode for p in processes if p.exitcode), 0), *texts)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _run(command: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))  # noqa: SIM115
    take_shortcuts()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if command[0] == "-m":
            sys.argv, sys.path[:0] = command[1:], [cwd]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            sys.argv, sys.path[:0] = ["-c", *command[2:]], [cwd]
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[:0] = command, [str(Path(command[0]).parent)]
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a child of the server ends without them
