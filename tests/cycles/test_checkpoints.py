from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import CheckpointEnsembleAcquisition, EntropyAcquisition, run_cycles
from lightning_al.cycles.checkpoints import FitState
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import ValidatedClassifier, make_data, make_trainer, picks_in, without_seconds
from tests.sweep import sampled

pytestmark = pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists and is not empty")


class KilledError(Exception):
    """Ends a run in the middle."""


class KillOnce(Callback):
    """Ends cycle 1 in a hook, in the fourth epoch if it is one of training; lists the epochs that begin in it."""

    def __init__(self, hook, began):
        self.began = began
        if hook is not None and "killed" not in began:
            setattr(self, hook, self.kill)

    def on_train_epoch_start(self, trainer, pl_module):
        self.began.append(trainer.current_epoch)

    def kill(self, trainer, pl_module, *args):
        if not args or trainer.current_epoch == 3:
            self.began.append("killed")
            raise KilledError


class Run:
    """A run of two cycles, of which the second can be killed."""

    def __init__(self, folder, callbacks=list, model=ToyClassifier, acquisition=EntropyAcquisition, **options):
        self.folder, self.callbacks, self.model, self.acquisition = folder, callbacks, model, acquisition
        self.options, self.began, self.hook = options, [], None

    def make(self, cycle):
        killer = [KillOnce(self.hook, self.began)] if cycle == 1 else []
        callbacks = [*killer, self.acquisition(5), *self.callbacks()]
        return make_trainer(*callbacks, enable_checkpointing=True, max_epochs=5), self.model()

    def start(self):
        data = make_data(val_dataset=ToyDataset(40, seed=2) if self.model is ValidatedClassifier else None)
        return without_seconds(run_cycles(self.make, data, cycles=2, run_dir=self.folder, **self.options))

    def die(self, hook):
        self.hook = hook
        with pytest.raises(KilledError):
            self.start()
        self.began.clear()
        self.hook = None

    def files(self):
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


def two_checkpoints():
    """The best one, and one of each epoch from which an interrupted fit continues."""
    return [ModelCheckpoint(monitor="val/loss", filename="best"), ModelCheckpoint(filename="recent")]


def stop_early():
    return [EarlyStopping("val/loss", patience=1), ModelCheckpoint(filename="recent")]


# what the trainers have, and which epochs are trained after a kill in the fourth one, and after one behind the last
CASES = {
    "Lightning's default": ({}, [3, 4], []),
    "one for each epoch": ({"callbacks": lambda: [ModelCheckpoint(save_top_k=-1, save_last=True)]}, [3, 4], []),
    "the best alone": (
        {"callbacks": lambda: two_checkpoints()[:1], "model": ValidatedClassifier, "ckpt": "best"},
        [1, 2, 3, 4],
        [1, 2, 3, 4],
    ),
    "the best and the last": (
        {"callbacks": two_checkpoints, "model": ValidatedClassifier, "ckpt": "best"},
        [3, 4],
        [],
    ),
    "stopped early": ({"callbacks": stop_early, "model": ValidatedClassifier}, None, []),
    "an acquisition with a state": ({"acquisition": CheckpointEnsembleAcquisition}, [3, 4], []),
}
MOMENTS = {"in an epoch": "on_train_batch_start", "before the query": "on_fit_end", "before the test": "on_test_start"}


@pytest.mark.parametrize("case", sampled(CASES, ["Lightning's default", "stopped early"]))
def test_an_interrupted_fit_continues_as_if_it_never_was(tmp_path, case):
    options, *rests = CASES[case]
    expected = Run(tmp_path / "expected", **options)
    records = expected.start()
    for moment, hook in MOMENTS.items():
        rest = rests[hook != "on_train_batch_start"]
        if rest is None:
            continue
        run = Run(tmp_path / moment, **options)
        run.die(hook)
        assert run.start() == records
        assert picks_in(run.folder) == picks_in(expected.folder)
        assert run.files() == expected.files()
        assert run.began == rest, moment


class Configured(ToyClassifier):
    """Its hyperparameters hold a class, which loads with any code."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"activation": torch.nn.ReLU})


def test_a_checkpoint_with_other_objects_is_used_where_it_is_trusted(tmp_path):
    run = Run(tmp_path / "refused", model=Configured)
    run.die("on_fit_end")
    with pytest.warns(UserWarning, match=r"holds Python objects.*the fit starts anew\. To continue.*trust_checkpoints"):
        run.start()
    assert run.began == [0, 1, 2, 3, 4]
    run = Run(tmp_path / "trusted", model=Configured, trust_checkpoints=True)
    run.die("on_fit_end")
    run.start()
    assert run.began == []


def cut_off(path, checkpoint):
    path.write_bytes(path.read_bytes()[:1000])


def rename_folder(path, checkpoint):
    for state in checkpoint["callbacks"].values():
        state["dirpath"] = "elsewhere"
    torch.save(checkpoint, path)


def relabel(path, checkpoint):
    checkpoint["lightning_al"]["labels"] = "other"
    torch.save(checkpoint, path)


def forget(path, checkpoint):
    del checkpoint["lightning_al"]
    torch.save(checkpoint, path)


@pytest.mark.parametrize("change", sampled([cut_off, rename_folder, relabel, forget], [cut_off, relabel]))
def test_what_is_no_checkpoint_of_this_fit_is_deleted_and_the_one_before_it_taken(tmp_path, change):
    run = Run(tmp_path, callbacks=lambda: [ModelCheckpoint(save_top_k=-1, filename="{epoch}")])
    run.die("on_fit_end")
    last = tmp_path / "cycle-01" / "checkpoints" / "epoch=4.ckpt"
    change(last, torch.load(last, weights_only=True))
    run.start()
    assert run.began == [4]
    assert [path.name for path in sorted(last.parent.iterdir())] == [f"epoch={epoch}.ckpt" for epoch in range(5)]


def test_processes_that_would_continue_from_different_checkpoints_stop(tmp_path):
    strategy = SimpleNamespace(broadcast=lambda name: "last.ckpt", reduce_boolean_decision=bool)
    trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)
    FitState(1, tmp_path / "last.ckpt").setup(trainer, None, "fit")
    with pytest.raises(
        MisconfigurationException, match=r"Process 1 .* cycle 1 from checkpoint None, process 0 from last"
    ):
        FitState(1, None).setup(trainer, None, "fit")
