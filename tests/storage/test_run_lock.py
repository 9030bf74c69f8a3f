import multiprocessing
import socket
import time

import pytest

from lightning_al.storage.atomic_write import FileNotWrittenError
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.storage.run_lock import locked_run


def hold(folder, connection):
    with locked_run(folder):
        connection.send("held")
        time.sleep(60)


def test_a_second_process_is_refused_with_the_name_of_the_first_and_a_dead_one_holds_nothing(tmp_path):
    folder = tmp_path / "runs" / "one"
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    holder = context.Process(target=hold, args=(folder, sender))
    holder.start()
    try:
        assert receiver.recv() == "held"
        with (
            pytest.raises(RunRefusedError, match=rf"belongs to process {holder.pid} on {socket.gethostname()}\. Wait"),
            locked_run(folder),
        ):
            pytest.fail("the lock is held")
        with locked_run(tmp_path / "runs" / "two"):  # another folder is another run
            pass
    finally:
        holder.kill()
        holder.join()
    with locked_run(folder):
        pass


def test_the_lock_is_released_after_an_error_and_leaves_the_folder_alone(tmp_path):
    with pytest.raises(OSError, match="disk"), locked_run(tmp_path / "run"):
        raise OSError("disk")
    with locked_run(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


def test_a_lock_without_a_run_leaves_no_file_and_one_of_a_run_stays(tmp_path):
    with locked_run(tmp_path / "trial"):
        (tmp_path / "..trial.lock.json.abc.tmp").touch()
    with locked_run(tmp_path / "trial"):
        pass  # deletes what a killed process was writing
    assert list(tmp_path.iterdir()) == []
    with locked_run(tmp_path / "run"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "pool.json").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run"]


def test_a_lock_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileNotWrittenError, match=r"\.run\.lock was not written .*Make room"),
        locked_run(tmp_path / "file" / "run"),
    ):
        pytest.fail("there is no such folder")


def test_other_processes_of_the_group_need_no_lock(tmp_path, monkeypatch):
    with locked_run(tmp_path / "run"):
        monkeypatch.setattr("lightning_al.storage.run_lock.rank_zero_only.rank", 1)
        with locked_run(tmp_path / "run"):
            pass
