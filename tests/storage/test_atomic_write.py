import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from lightning_al.storage import atomic_write as files
from lightning_al.storage.atomic_write import FileNotWrittenError, write_atomically

LETTERS = "abcdefgh"
LENGTH = 2_000_000

# only files.py is loaded, so that a round takes no time for importing torch
ENDLESS_WRITER = """
import itertools, runpy, sys
write_atomically = runpy.run_path(sys.argv[1])["write_atomically"]
for letter in itertools.cycle(sys.argv[3]):
    write_atomically(sys.argv[2], letter * int(sys.argv[4]))
    print(letter, flush=True)
"""


def test_the_old_content_is_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "notes.txt"
    write_atomically(path, "old and long")
    write_atomically(str(path), "neü\n")
    assert path.read_bytes() == "neü\n".encode()
    assert os.listdir(path.parent) == ["notes.txt"]


@pytest.mark.parametrize("old", ["old", None])
def test_an_exception_leaves_the_old_content_and_no_temporary_file(tmp_path, old):
    path = tmp_path / "notes.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        write_atomically(path, "new" * 100_000 + "\ud800")
    assert os.listdir(tmp_path) == ([] if old is None else ["notes.txt"])
    assert old is None or path.read_text() == old


def test_a_full_disk_leaves_the_old_file_and_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "pool.json").write_text("old")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    expected = r"pool\.json was not written \(No space left on device\), and nothing else was changed\. Make room"
    with pytest.raises(FileNotWrittenError, match=expected):
        write_atomically(tmp_path / "pool.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_target_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["kept"]


def test_a_private_file_stays_private(tmp_path):
    (tmp_path / "notes.txt").write_text("old")
    (tmp_path / "notes.txt").chmod(0o600)
    write_atomically(tmp_path / "notes.txt", "new")
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o600


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes.txt").write_text("old")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "disk" / "notes.txt")
    write_atomically(tmp_path / "notes.txt", "new")
    assert (tmp_path / "notes.txt").is_symlink()
    assert (tmp_path / "disk" / "notes.txt").read_text() == "new"


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)])
def test_permissions_follow_the_umask(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "notes.txt", "text")
        assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == expected
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_a_killed_process_leaves_one_whole_text(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    interrupted = 0
    for attempt in range(100):
        if interrupted == 3:
            break
        command = [sys.executable, "-c", ENDLESS_WRITER, files.__file__, str(path), LETTERS, str(LENGTH)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "a\n"  # it is in the middle of the second write now, or later
            time.sleep(0.0017 * (attempt % 10))
            writer.send_signal(signal.SIGKILL)
            assert writer.wait() == -signal.SIGKILL
            written = "a" + writer.stdout.read().replace("\n", "")
        text = path.read_text()
        # the last text that was reported, or the one after it, which was renamed but not reported any more
        following = LETTERS[(LETTERS.index(written[-1]) + 1) % len(LETTERS)]
        assert text in (written[-1] * LENGTH, following * LENGTH)
        interrupted += len(os.listdir(tmp_path)) - 1
        for leftover in tmp_path.glob(".notes.txt.*.tmp"):
            leftover.unlink()
        assert os.listdir(tmp_path) == ["notes.txt"]
    assert interrupted == 3, "hardly a kill hit a write, so the test shows nothing"


def test_a_process_that_is_killed_before_the_rename_leaves_the_old_text(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    script = (
        "import os, runpy, signal, sys\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "runpy.run_path(sys.argv[1])['write_atomically'](sys.argv[2], 'new')\n"
    )
    finished = subprocess.run([sys.executable, "-c", script, files.__file__, str(path)], check=False)
    assert finished.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
