import csv
import logging
import os
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import ActiveLearningCLI, ActiveLearningDataModule, EntropyAcquisition, Pool
from lightning_al.cli.entry_point import main
from lightning_al.storage.queue_file import read_queue
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.testing import ToyDataset
from tests.python_process import run_python
from tests.runs import SECONDS, ValidatedClassifier, picks_in, same_weights, weights_of

ROOT = Path(__file__).parents[2]
CONSOLE_SCRIPT = Path(sys.executable).with_name("lightning-al")
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
TOY = """\
cycles: 3
data:
  datamodule_or_train_dataset: lightning_al.testing.ToyDataset
  initial_size: 10
  batch_size: 8
  val_dataset: lightning_al.testing.ToyDataset
  test_dataset:
    class_path: lightning_al.testing.ToyDataset
    init_args: {size: 40, seed: 1}
model: tests.runs.ValidatedClassifier
acquisition:
  class_path: EntropyAcquisition
  init_args: {query_size: 6}
trainer:
  max_epochs: 10
  num_sanity_val_steps: 0
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: val/loss, patience: 2}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/loss, filename: best}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A configuration file and a run folder as arguments of `fit`; the test works in an empty folder."""
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    return ["fit", "--config=toy.yaml", "--trainer.default_root_dir=run"]


def start(*command, cwd=ROOT, code=0):
    finished = run_python(*command, cwd=cwd, env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert finished.returncode == code, finished.stderr
    return finished


def read_rows(folder):
    with (folder / "cycles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ the command, in processes of its own


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """What a user types first: (command without `fit`, run folder, finished process)."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    options = ["--config", "configs/digits.yaml", "--config", "configs/strategies/noise_stability.yaml"]
    options += ["--cycles", "2", "--acquisition.query_size", "15", "--acquisition.passes=3"]
    options += ["--trainer.max_epochs", "3"]
    command = ["fit", *options, "--trainer.default_root_dir"]
    return command, folder, start("-m", "lightning_al", *command, folder)


def test_digits_from_yaml_with_overrides_on_the_command_line(digits):
    _, folder, _ = digits
    rows = read_rows(folder)
    assert list(rows[0]) == ["cycle", "labeled", "queried", "test/accuracy", *SECONDS]
    assert [(row["cycle"], row["labeled"], row["queried"]) for row in rows] == [("0", "20", "15"), ("1", "35", "15")]
    assert [labeling.strategy for labeling in Pool.load(folder / "pool.json").history] == [
        "initial",
        "NoiseStabilityAcquisition",
        "NoiseStabilityAcquisition",
    ]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["acquisition"]["init_args"]["passes"] == 3
    assert config["cycles"] == 2


def test_the_output_tells_each_cycle_once_and_ends_with_a_table(digits):
    _, _, finished = digits
    lines = finished.stderr.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("Cycle ")] == ["Cycle 0", "Cycle 1"]
    assert sum("GPU available" in line for line in lines) == 1
    table = [line.split() for line in lines if line.strip()][-3:]
    assert table[0] == ["cycle", "labeled", "queried", "test/accuracy", *SECONDS]
    assert [row[:3] for row in table[1:]] == [["0", "20", "15"], ["1", "35", "15"]]
    assert "Warning" not in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_run_folder_holds_everything(digits):
    _, folder, _ = digits
    names = {path.name for path in folder.iterdir()}
    assert names == {"pool.json", "cycles.csv", "config.yaml", "tracking.json", "cycle-00", "cycle-01", "csv"}
    assert len(list(folder.glob("cycle-*/checkpoints/*.ckpt"))) == 2
    assert [path.name for path in (folder / "csv").iterdir()] == ["version_0"]


def test_the_console_script_does_the_same(digits, tmp_path):
    command, folder, _ = digits
    start(CONSOLE_SCRIPT, *command, tmp_path / "run", "--trainer.logger=false")
    assert picks_in(tmp_path / "run") == picks_in(folder)
    accuracies = [[row["test/accuracy"] for row in read_rows(path)] for path in (folder, tmp_path / "run")]
    assert accuracies[0] == accuracies[1]


def test_a_class_of_the_users_own_resolves_in_the_working_directory(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    (tmp_path / "my_model.py").write_text(
        "from lightning_al.testing import ToyClassifier\n\n\n"
        "class MyModel(ToyClassifier):\n"
        "    def __init__(self, lr: float = 0.1) -> None:\n"
        "        super().__init__()\n"
        "        self.lr = lr\n"
    )
    command = [CONSOLE_SCRIPT, "fit", "--config", "toy.yaml", "--model", "my_model.MyModel", "--model.lr", "0.5"]
    start(*command, "--cycles=1", "--trainer.callbacks=null", "--trainer.max_epochs=1", cwd=tmp_path)
    folder = tmp_path / "runs" / "default"
    assert len(picks_in(folder)) == 2
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"] == {"class_path": "my_model.MyModel", "init_args": {"lr": 0.5}}


# ------------------------------------------------------------------ the keys


def test_the_help_of_fit_names_the_keys_of_active_learning(toy, capsys):
    with pytest.raises(SystemExit, match="0"):
        ActiveLearningCLI(args=["fit", "--help"])
    text = capsys.readouterr().out
    for key in ("acquisition", "cycles", "reset", "pretrained", "shrink", "perturb", "ckpt", "overwrite"):
        assert f"  --{key}" in text
    assert "Total number of cycles of the run" in text
    assert "--ckpt_path" not in text
    assert "--data.seed" not in text  # it is `seed_everything`


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--acquisition.query_sise=5"], "Option 'query_sise' is not accepted"),
        (["--cycels=5"], "unrecognized arguments: --cycels=5"),
        (["--acquisition=NoSuchAcquisition"], "NoSuchAcquisition"),
        (["--config=misspelt.yaml"], "acquisiton"),
        (["--cycles=many"], "cycles"),
        (["--reset=cold"], "cold"),
    ],
)
def test_a_misspelt_key_is_refused(toy, capsys, arguments, message):
    Path("misspelt.yaml").write_text("acquisiton:\n  class_path: RandomAcquisition\n")
    with pytest.raises(SystemExit, match="2"):
        ActiveLearningCLI(args=[*toy, *arguments])
    assert message in capsys.readouterr().err.split("error:")[1]
    assert not Path("run").exists()


def test_arguments_out_of_range_are_refused(toy):
    with pytest.raises(ValueError, match=r"`run_cycles\(cycles=0\)`"):
        ActiveLearningCLI(args=[*toy, "--cycles=0"])
    with pytest.raises(SystemExit, match="2"):
        ActiveLearningCLI(args=[*toy, "--acquisition.query_size=none"])


def test_a_missing_acquisition_is_explained(toy):
    with pytest.raises(RunRefusedError, match=r"`fit` needs an acquisition: add `--config noise_stability`"):
        ActiveLearningCLI(args=[*toy, "--acquisition=null"])
    assert not Path("run").exists()


def test_the_acquisition_may_also_stand_with_the_callbacks(toy):
    callbacks = '[{"class_path": "lightning_al.MarginAcquisition", "init_args": {"query_size": 5}}]'
    args = [*toy, "--acquisition=null", f"--trainer.callbacks={callbacks}", "--trainer.max_epochs=1", "--cycles=2"]
    cli = ActiveLearningCLI(args=args)
    assert [labeling.strategy for labeling in cli.datamodule.pool.history[1:]] == ["MarginAcquisition"] * 2
    with pytest.raises(MisconfigurationException, match="one acquisition callback, got 2"):
        ActiveLearningCLI(args=[*args, "--acquisition=EntropyAcquisition", "--acquisition.query_size=5", "--overwrite"])


# ------------------------------------------------------------------ the cycles


class Witness(Callback):
    """Notes the objects of each cycle; alive, so that none can take the address of another."""

    fits: list

    def on_train_start(self, trainer, pl_module):
        self.fits.append(
            {
                "trainer": trainer,
                "model": pl_module,
                "weights": weights_of(pl_module),
                "datamodule": trainer.datamodule,
                "loggers": list(trainer.loggers),
                "step": trainer.global_step,
                "stopping": trainer.early_stopping_callback,
                "stopping_state": dict(trainer.early_stopping_callback.state_dict()),
                "checkpoint": trainer.checkpoint_callback,
                "optimizer": len(trainer.optimizers[0].state),
                "acquisition": next(call for call in trainer.callbacks if isinstance(call, EntropyAcquisition)),
                "root": trainer.default_root_dir,
            }
        )

    def on_train_end(self, trainer, pl_module):
        self.fits[-1]["epochs"] = trainer.current_epoch


@pytest.fixture(scope="module")
def witnessed_run(tmp_path_factory):
    """Three cycles with a logger: the folder, the CLI, and what a callback saw."""
    Witness.fits = []
    config = yaml.safe_load(TOY)
    config["trainer"]["callbacks"].append({"class_path": f"{Witness.__module__}.Witness"})
    config["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}}
    folder = tmp_path_factory.mktemp("witnessed")
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-al"])
        patch.chdir(folder)
        cli = ActiveLearningCLI(args=["fit", "--config=toy.yaml", "--trainer.default_root_dir=run"])
    return folder, cli, Witness.fits


@pytest.fixture
def witnessed(witnessed_run, monkeypatch):
    """Work where those cycles left their files."""
    folder, *cli_and_fits = witnessed_run
    monkeypatch.chdir(folder)
    return cli_and_fits


def test_only_data_and_loggers_outlive_a_cycle(witnessed):
    cli, fits = witnessed
    assert len(fits) == 3
    for name in ("trainer", "model", "stopping", "checkpoint", "acquisition"):
        assert len({id(fit[name]) for fit in fits}) == 3, name
    assert all(fit["datamodule"] is cli.datamodule for fit in fits)
    assert [type(logger) for logger in fits[0]["loggers"]] == [CSVLogger]
    assert all(fit["loggers"][0] is fits[0]["loggers"][0] for fit in fits)
    assert cli.datamodule is fits[0]["datamodule"]
    assert not same_weights(fits[0]["weights"], fits[1]["weights"])
    assert [(fit["step"], fit["optimizer"], fit["epochs"]) for fit in fits] == [(0, 0, 3)] * 3
    assert all(fit["stopping_state"]["wait_count"] == 0 for fit in fits)
    assert all(fit["stopping_state"]["best_score"] == float("inf") for fit in fits)
    assert all(type(fit["stopping"]) is EarlyStopping for fit in fits)


class CountedDataset(ToyDataset):
    made = 0

    def __init__(self):
        super().__init__()
        CountedDataset.made += 1


def test_the_data_is_loaded_once(toy):
    CountedDataset.made = 0
    args = [*toy, f"--data.datamodule_or_train_dataset={CountedDataset.__module__}.CountedDataset"]
    cli = ActiveLearningCLI(args=args)
    assert len(cli.records) == 3
    assert CountedDataset.made == 1


def test_each_cycle_has_its_folder_and_the_logger_one_file(witnessed):
    _, fits = witnessed
    assert [fit["root"] for fit in fits] == [os.path.join("run", f"cycle-0{cycle}") for cycle in range(3)]
    for cycle, fit in enumerate(fits):
        assert type(fit["checkpoint"]) is ModelCheckpoint
        assert os.path.relpath(fit["checkpoint"].best_model_path) == f"run/cycle-0{cycle}/checkpoints/best.ckpt"
    with open("run/csv/version_0/metrics.csv", newline="") as file:
        labeled = [row["al/labeled"] for row in csv.DictReader(file) if row.get("al/test/accuracy")]
    assert [float(count) for count in labeled] == [10, 16, 22]
    assert [path.name for path in Path("run/csv").iterdir()] == ["version_0"]


def test_the_seed_of_the_run_is_the_seed_of_the_data(toy):
    fast = [*toy, "--trainer.callbacks=null", "--trainer.max_epochs=1", "--cycles=1"]
    picks = {}
    for seed, expected in {"0": 0, "1": 1, "false": 0}.items():
        cli = ActiveLearningCLI(args=[*fast, f"--seed_everything={seed}", f"--trainer.default_root_dir=run-{seed}"])
        assert cli.datamodule.seed == expected
        picks[seed] = picks_in(Path(f"run-{seed}"))
    assert ActiveLearningCLI(args=["--config=toy.yaml", "--seed_everything=true"], run=False).datamodule.seed == 1
    assert picks["0"][0] != picks["1"][0]
    assert picks["0"] == picks["false"]


# ------------------------------------------------------------------ continuing


def test_the_same_command_with_more_cycles_continues_and_says_so_in_one_line(toy, caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    ActiveLearningCLI(args=[*toy, "--cycles=1"])
    caplog.clear()
    cli = ActiveLearningCLI(args=[*toy, "--cycles=2", "--trainer.log_every_n_steps=7"])
    assert [text for text in caplog.messages if "ontinu" in text] == [
        "Continuing the run in run after 1 finished cycle."
    ]
    assert sum(text.startswith("Cycle ") for text in caplog.messages) == 1
    assert [record["labeled"] for record in cli.records] == [10, 16]
    straight = ActiveLearningCLI(args=[*toy[:-1], "--trainer.default_root_dir=straight", "--cycles=2"])
    assert picks_in(Path("run")) == picks_in(Path("straight"))
    assert [r["test/accuracy"] for r in cli.records] == [r["test/accuracy"] for r in straight.records]


def test_a_changed_setting_is_refused_by_name_and_overwrite_begins_anew(toy):
    ActiveLearningCLI(args=[*toy, "--cycles=1"])
    with pytest.raises(ValueError, match=r"\(trainer\.max_epochs: 10 then, 4 now\)\. .*`--overwrite`"):
        ActiveLearningCLI(args=[*toy, "--trainer.max_epochs=4"])
    with pytest.raises(ValueError, match=r"acquisition\.init_args\.query_size: 6 then, 8 now"):
        ActiveLearningCLI(args=[*toy, "--acquisition.query_size=8"])
    cli = ActiveLearningCLI(args=[*toy, "--acquisition.query_size=8", "--cycles=1", "--overwrite"])
    assert [record["queried"] for record in cli.records] == [8]
    names = [path.name for path in Path().glob("[!.]*")]  # the lock is hidden
    assert sorted(names) == ["run", "run.old-1", "toy.yaml"]
    assert [len(indices) for indices in picks_in(Path("run.old-1"))] == [10, 6]


def test_the_kept_configuration_is_a_configuration(toy):
    ActiveLearningCLI(args=[*toy, "--cycles=1"])
    cli = ActiveLearningCLI(args=["fit", "--config=run/config.yaml", "--cycles=2"])
    assert [record["labeled"] for record in cli.records] == [10, 16]


@pytest.mark.parametrize("name", ["cycles.csv", "pool.json"])
def test_a_damaged_file_is_a_sentence(toy, name):
    Path("run").mkdir()
    Path("run", "pool.json").write_text("damaged")
    Path("run", "cycles.csv").write_text("damaged\n1\n" if name == "cycles.csv" else "cycle\n")
    with pytest.raises(SystemExit, match=f"^lightning-al: {Path('run', name)}"):
        main(toy)


def test_a_pool_file_of_the_users_own_is_refused(toy):
    with pytest.raises(ValueError, match=r"labels are kept in mine\.json, those of this run in run.pool\.json"):
        ActiveLearningCLI(args=[*toy, "--data.pool_file=mine.json"])


def test_fast_dev_run_leaves_no_files(toy):
    cli = ActiveLearningCLI(args=[*toy, "--trainer.fast_dev_run=true", "--trainer.callbacks=null"])
    assert [record["queried"] for record in cli.records] == [0]
    assert [path.name for path in Path().glob("[!.]*")] == ["toy.yaml"]  # the lock is hidden


# ------------------------------------------------------------------ LightningCLI's side


def test_validate_and_test_are_lightnings_and_take_the_same_configuration(toy, capsys):
    record = ActiveLearningCLI(args=[*toy, "--cycles=1"]).records[0]
    for command, metric in (("validate", "val/loss"), ("test", "test/accuracy")):
        capsys.readouterr()
        checkpoint = "--ckpt_path=run/cycle-00/checkpoints/best.ckpt"
        ActiveLearningCLI(args=[command, "--config=toy.yaml", "--trainer.default_root_dir=run/cycle-00", checkpoint])
        assert metric in capsys.readouterr().out
    assert len(picks_in(Path("run"))) == 2
    assert 0 <= record["test/accuracy"] <= 1


def test_test_needs_no_acquisition(toy, capsys):
    config = yaml.safe_load(TOY)
    Path("shared.yaml").write_text(yaml.safe_dump({name: config[name] for name in ("data", "model", "trainer")}))
    cli = ActiveLearningCLI(args=["test", "--config=shared.yaml"])
    assert "test/accuracy" in capsys.readouterr().out
    assert None not in cli.trainer.callbacks


def test_the_callback_works_in_a_plain_lightning_cli(toy, monkeypatch):
    config = yaml.safe_load(TOY)
    del config["cycles"]
    config["trainer"]["callbacks"] = [{"class_path": "lightning_al.EntropyAcquisition", "init_args": {"query_size": 6}}]
    config["trainer"]["max_epochs"] = 1
    del config["acquisition"]
    config["data"]["pool_file"] = "pool.json"
    Path("plain.yaml").write_text(yaml.safe_dump(config))
    code = (
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lightning_al import ActiveLearningDataModule\n"
        "LightningCLI(datamodule_class=ActiveLearningDataModule)\n"
    )
    LightningCLI(
        datamodule_class=ActiveLearningDataModule, args=["fit", "--config=plain.yaml"], save_config_callback=None
    )
    first = picks_in(Path())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the model
    arguments = ["fit", "--config=plain.yaml", "--trainer.default_root_dir=second"]
    finished = start("-c", code, *arguments, cwd=Path())
    second = picks_in(Path())
    assert second[:2] == first
    assert [len(indices) for indices in second] == [10, 6, 6]
    assert "Pool(22 of 120 labeled, cycle 2)" in finished.stderr


class LinkedClassifier(ValidatedClassifier):
    """Is told by the data how many samples are labeled at first."""

    def __init__(self, start: int, classes: int = 4):
        super().__init__(classes)
        self.start = start


class LinkedCLI(ActiveLearningCLI):
    def add_arguments_to_parser(self, parser):
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.initial_size", "model.start", apply_on="instantiate")


def test_arguments_may_be_linked_from_the_instantiated_data(toy):
    cli = LinkedCLI(LinkedClassifier, args=[*toy[:1], *linked(toy)])
    assert cli.model.start == 10
    assert [record["labeled"] for record in cli.records] == [10, 16]
    again = LinkedCLI(LinkedClassifier, args=[*toy[:1], *linked(toy), "--cycles=3"])
    assert [record["labeled"] for record in again.records] == [10, 16, 22]


def linked(toy):
    config = yaml.safe_load(TOY)
    del config["model"]
    Path("linked.yaml").write_text(yaml.safe_dump(config))
    return ["--config=linked.yaml", *toy[2:], "--cycles=2"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ("labels.jsonl", []),
        ("{class_path: lightning_al.Labels, init_args: {path: labels.jsonl, classes: [a, b, c, d]}}", list("abcd")),
    ],
)
def test_labels_of_people_are_a_file_or_a_class(toy, labels, classes):
    cli = ActiveLearningCLI(args=[*toy, f"--data.labels={labels}"])
    assert cli.records == []
    (path,) = Path().rglob("queue.jsonl")
    queue = read_queue(path)
    assert (path.parents[1] / queue.labels).resolve() == Path("labels.jsonl").resolve()
    assert (queue.classes, len(queue.samples)) == (classes, 10)
