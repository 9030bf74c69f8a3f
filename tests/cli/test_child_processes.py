"""Processes that start in order, end before the process that started them, and end with it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from lightning_al.cli import child_processes
from lightning_al.cli.child_processes import DIE_WITH_PARENT, run_processes, start_process
from tests.cli.process_checks import everyone_is_gone, wait_until

# Starts two processes as a comparison does; loaded by its path, the module needs no torch.
PARENT = """\
import importlib.util, os, sys

spec = importlib.util.spec_from_file_location("child_processes", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
start = lambda: module.start_process([sys.executable, "-c", sys.argv[2]], os.environ)
module.run_processes([start, start], 2, print)
"""
CHILD = """\
import fcntl, time

lock = open("lock", "a")
fcntl.flock(lock, fcntl.LOCK_SH)
open("events", "a").write("x")
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_process_leaves_no_child_behind(tmp_path):
    command = [sys.executable, "-c", PARENT, child_processes.__file__, CHILD]
    with subprocess.Popen(command, cwd=tmp_path) as parent:
        (tmp_path / "events").touch()
        wait_until(lambda: (tmp_path / "events").read_text() == "xx")
        assert not everyone_is_gone(tmp_path)
        parent.kill()
    wait_until(lambda: everyone_is_gone(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_parent_that_ended_before_the_request_is_noticed(tmp_path):
    command = [sys.executable, str(DIE_WITH_PARENT), str(os.getpid() + 1), sys.executable, "-c", "print('ran')"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert (finished.stdout, finished.stderr) == ("", "The process that started this one has ended.\n")


def sleeper(seconds):
    return start_process([sys.executable, "-c", f"import time; time.sleep({seconds})"], os.environ)


def test_processes_start_in_order_from_any_thread_and_end_in_this_one():
    started, ended = [], []

    def start(position):
        started.append(position)
        return sleeper(0.05 * (position % 3))

    def on_end(position, status):
        assert threading.current_thread() is threading.main_thread()
        ended.append((position, status))

    run_processes([lambda position=position: start(position) for position in range(12)], 5, on_end)
    assert started == list(range(12))
    assert sorted(ended) == [(position, 0) for position in range(12)]


def test_nothing_starts_after_an_error(tmp_path):
    started = []

    def start():
        started.append(sleeper(600 if started else 0))
        return started[-1]

    with pytest.raises(RuntimeError, match="the report failed"):
        run_processes([start] * 9, 2, lambda position, status: raise_error())
    assert 1 <= len(started) <= 3
    assert all(process.returncode is not None for process in started)


def raise_error():
    raise RuntimeError("the report failed")


def test_an_error_of_a_start_is_raised_and_stops_the_others():
    started = []

    def start():
        started.append(sleeper(600))
        return started[-1]

    with pytest.raises(RuntimeError, match="the report failed"):
        run_processes([start, raise_error, start], 2, lambda position, status: None)
    assert [process.returncode for process in started] in ([-signal.SIGTERM], [-signal.SIGTERM] * 2)
