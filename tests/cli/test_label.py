"""The command in a process of its own: it serves, ends by Ctrl-C, resumes; tables; samples that are no files."""

import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
from urllib.parse import urlsplit

import pytest

from lightning_al import Labels
from lightning_al.cli import label as command
from lightning_al.cli.label import main
from lightning_al.cli.run_dataset import dataset_of
from lightning_al.labeling import server
from lightning_al.storage.queue_file import Queue, QueuedSample, write_queue
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.storage.settings import write_settings
from tests.cli.process_checks import wait_until
from tests.labeling.queues import written_queue
from tests.python_process import run_python


def labeling(run, output, *arguments):
    """Run the command as a process does, with its output in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell runs in the background
    sys.stdout = output.open("w", buffering=1)
    sys.exit(main([str(run), *arguments]))


def answer_one(address):
    """Answer the next sample, as the page does, and return how many are left."""
    parts = urlsplit(address)
    headers = {"Authorization": f"Bearer {parts.fragment}"}
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("GET", "/api/state?window=a", headers=headers)
    sample = json.loads(connection.getresponse().read())["sample"]
    body = json.dumps({"window": "a", "index": sample["index"], "label": "cat", "seconds": 1})
    connection.request("POST", "/api/answer", body, headers)
    left = json.loads(connection.getresponse().read())["progress"]["left"]
    connection.close()
    return left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_by_a_signal_and_goes_on_where_it_was(tmp_path, number):
    written_queue(tmp_path, cycle=1)
    written_queue(tmp_path, size=3, cycle=2)  # the last one counts
    output = tmp_path / "output"
    context = multiprocessing.get_context("fork")
    for left in (2, 1):
        output.unlink(missing_ok=True)
        process = context.Process(target=labeling, args=(tmp_path, output, "--port", "0"), daemon=True)
        process.start()
        try:
            wait_until(lambda: output.exists() and "Ctrl-C" in output.read_text())
            address = re.search(r"Open (http://127\.0\.0\.1:\d+/#[\w-]{32}) in", output.read_text()).group(1)
            assert answer_one(address) == left
        finally:
            os.kill(process.pid, number)
            process.join(30)
        assert process.exitcode == (0 if number == signal.SIGINT else -number)
    lines = output.read_text().splitlines()
    assert lines[0].startswith(f"1 of 3 samples are answered in {tmp_path / 'labels.jsonl'}, 2 wait")
    if number == signal.SIGINT:
        assert lines[2:] == [lines[0].replace("1 of", "2 of").replace("2 wait", "1 wait")]
    assert dict(Labels(tmp_path / "labels.jsonl")) == {10: "cat", 11: "cat"}


def test_a_table_goes_out_and_comes_back(tmp_path, capsys):
    written_queue(tmp_path, size=2)
    table = tmp_path / "queue.csv"
    assert main([str(tmp_path), "--export", str(table)]) == 0
    assert capsys.readouterr().out == f"{table} has 2 samples that wait for a label.\n"
    table.write_text(table.read_text().replace(".png,", ".png,cow"))
    assert main([str(tmp_path), "--import", str(table), "--by", "Ada"]) == 0
    assert capsys.readouterr().out.startswith(f"2 answers of {table} were added. 2 of 2 samples are answered")
    assert {answer.by for answer in Labels(tmp_path / "labels.jsonl").answers.values()} == {"Ada"}
    table.write_text("index,label\n10,cwo\n")
    assert main([str(tmp_path), "--import", str(table)]) == 1
    assert "line 2: the label 'cwo' is none of the 3 classes" in capsys.readouterr().err


def test_what_cannot_be_served_is_a_sentence(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path)]) == 1
    assert re.match(r"lightning-al label: .* has no cycle with a queue\.jsonl", capsys.readouterr().err)
    written_queue(tmp_path)
    with socket.create_server((server.ADDRESS, 0)) as other:
        assert main([str(tmp_path), "--port", str(other.getsockname()[1])]) == 1
    assert re.match(r"lightning-al label: .*ddress already in use.*--port", capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([str(tmp_path)]) == 1
    assert 'needs uvicorn: pip install "lightning_al[label]"' in capsys.readouterr().err


def test_samples_without_a_file_come_from_the_dataset_of_the_run(tmp_path, monkeypatch):
    write_queue(tmp_path, Queue(0, classes=["a"], samples=[QueuedSample(3)]))
    with pytest.raises(RunRefusedError, match=r"config\.yaml there does not say how to make the dataset"):
        dataset_of(tmp_path)
    data = {"datamodule_or_train_dataset": {"class_path": "lightning_al.testing.ToyDataset"}, "initial_size": 10}
    write_settings(tmp_path / "config.yaml", {"data": data})
    served = []
    monkeypatch.setattr(command, "serve", lambda session, read, *_, **__: served.append(read(session.sample(3))))
    assert main([str(tmp_path)]) == 0
    assert [float(value) for value in served[0].data.split(b",")] == pytest.approx(
        dataset_of(tmp_path)[3][0].tolist(), rel=1e-5
    )


def test_the_command_line_knows_it():
    finished = run_python("-m", "lightning_al", "label", "--help")
    assert finished.returncode == 0
    assert "lightning-al label" in finished.stdout
