import os
import signal

import pytest
import torch

from lightning_al import EntropyAcquisition, run_cycles
from lightning_al.cycles.termination import LAUNCHER, ending_together
from lightning_al.storage.atomic_write import FileNotWrittenError
from lightning_al.storage.run_folder import RunFolder
from lightning_al.testing import ToyClassifier
from tests.runs import make_data, maker, picks_in, without_seconds


class TerminatedWhileScoring(ToyClassifier):
    """Is asked to end while it scores, and counts the batches after that."""

    batches = 0

    def acquisition_step(self, batch):
        type(self).batches += 1
        os.kill(os.getpid(), signal.SIGTERM)
        return self(batch[0])


def test_sigterm_ends_a_query_at_once_and_the_run_continues(tmp_path):
    make = maker(lambda: EntropyAcquisition(5))
    expected = run_cycles(make, make_data(), cycles=1, run_dir=tmp_path / "expected")
    TerminatedWhileScoring.batches = 0
    terminated = maker(lambda: EntropyAcquisition(5), model=TerminatedWhileScoring)
    with pytest.raises(SystemExit) as ended:
        run_cycles(terminated, make_data(), cycles=1, run_dir=tmp_path)
    assert (ended.value.code, TerminatedWhileScoring.batches) == (143, 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert LAUNCHER not in os.environ
    continued = run_cycles(make, make_data(), cycles=1, run_dir=tmp_path, may_change=["model"])
    assert without_seconds(continued) == without_seconds(expected)
    assert picks_in(tmp_path) == picks_in(tmp_path / "expected")


@pytest.mark.parametrize(("name", "value"), [("SLURM_NTASKS", "2"), (None, None)])
def test_the_handler_of_a_user_or_of_slurm_stays(monkeypatch, name, value):
    def handler(*args):
        pass

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL if name else handler)
    try:
        if name:
            monkeypatch.setenv(name, value)
            monkeypatch.setenv("SLURM_JOB_NAME", "train")
        with ending_together():
            assert signal.getsignal(signal.SIGTERM) == (signal.SIG_DFL if name else handler)
        assert signal.getsignal(signal.SIGTERM) == (signal.SIG_DFL if name else handler)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_whose_launcher_has_ended_does_not_begin(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(LAUNCHER, str(os.getpid()))  # which is not its own parent
    with pytest.raises(SystemExit, match="The process that started this one has ended"), ending_together():
        pytest.fail("it began")


def test_weights_that_do_not_fit_on_the_disk_leave_the_old_ones(tmp_path, monkeypatch):
    folder, model = RunFolder(tmp_path), ToyClassifier()
    folder.write_weights(0, model)
    before = folder.weights(0).read_bytes()

    def fail(value, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(FileNotWrittenError, match=r"weights\.ckpt was not written \(PytorchStreamWriter.*Make room"):
        folder.write_weights(0, model)
    assert folder.weights(0).read_bytes() == before
    assert [path.name for path in folder.cycle(0).iterdir()] == ["weights.ckpt"]
