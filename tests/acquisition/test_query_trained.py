import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import (
    CheckpointEnsembleAcquisition,
    MarginAcquisition,
    NoiseStabilityAcquisition,
    Pool,
    QueryByCommitteeAcquisition,
    query,
)
from lightning_al.cli.query import main
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.testing import ToyClassifier
from tests.python_process import run_python
from tests.runs import make_data, make_trainer
from tests.snapshot import module_picture, random_picture


def trained(acquisition):
    """Return a model after a fit, and what the query at its end picked."""
    model, data = ToyClassifier(), make_data()
    make_trainer(acquisition).fit(model, data)
    return model, list(data.pool.history[1].indices)


class Unused(Callback):
    """Fails if a trainer runs it."""

    def setup(self, trainer, pl_module, stage):
        raise InterruptedError("it ran")


@pytest.mark.parametrize("trainer", [None, lambda: make_trainer(Unused(), max_epochs=3)])
def test_picks_what_the_query_of_a_fit_picks_and_changes_nothing_else(trainer, tmp_path):
    model, picks = trained(NoiseStabilityAcquisition(5, passes=2))
    data, trainer = make_data(pool_file=tmp_path / "pool.json"), trainer and trainer()
    model.zero_grad()
    before = module_picture(model), random_picture()
    assert query(model, data, NoiseStabilityAcquisition(5, passes=2), trainer) == picks
    assert (module_picture(model), random_picture()) == before
    assert list(Pool.load(tmp_path / "pool.json").history[1].indices) == picks
    if trainer:
        assert isinstance(trainer.callbacks[0], Unused)
        assert (trainer.limit_train_batches, trainer.limit_val_batches, trainer.current_epoch) == (1.0, 1.0, 0)
    more = query(model, data, NoiseStabilityAcquisition(5, passes=2))
    assert len(more) == 5
    assert not set(more) & {*picks, *data.pool.labeled_by(0)}


def test_nothing_is_picked_where_every_sample_is_labeled():
    assert query(ToyClassifier(), make_data(initial_size=120), MarginAcquisition(5)) == []


@pytest.mark.parametrize("acquisition", [CheckpointEnsembleAcquisition, QueryByCommitteeAcquisition])
def test_strategies_that_need_a_training_are_refused(acquisition):
    with pytest.raises(MisconfigurationException, match="trains no batch"):
        query(ToyClassifier(), make_data(), acquisition(5))


def test_processes_that_end_with_the_fit_are_refused():
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match='strategy="ddp"'):
        query(ToyClassifier(), make_data(), MarginAcquisition(5), trainer)


def test_the_command_prints_the_picks(tmp_path, monkeypatch):
    model, picks = trained(MarginAcquisition(5))
    torch.save(model.state_dict(), tmp_path / "best.ckpt")
    command = [
        "query",
        "--config=margin",
        "--acquisition.query_size=5",
        "--data.datamodule_or_train_dataset=lightning_al.testing.ToyDataset",
        "--data.initial_size=10",
        "--data.batch_size=8",
        "--model=lightning_al.testing.ToyClassifier",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]
    monkeypatch.setattr("sys.argv", ["lightning-al", *command])
    with pytest.raises(RunRefusedError, match="`query` needs an acquisition and a checkpoint, got `--ckpt None`"):
        main()
    finished = run_python("-m", "lightning_al", *command, f"--ckpt={tmp_path / 'best.ckpt'}")
    assert finished.returncode == 0, finished.stderr
    assert [int(line) for line in finished.stdout.splitlines()] == picks
    assert "The picks are not stored" in finished.stderr
