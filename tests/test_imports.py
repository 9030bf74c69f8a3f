from tests.python_process import run_python

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("wandb", "jsonargparse"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

USE = """
import torch
from lightning.pytorch import Trainer
import lightning_al
from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, functional, run_cycles
from lightning_al.testing import ToyClassifier, ToyDataset

torch.manual_seed(0)
points = ToyDataset().points
scores = functional.noise_stability(ToyClassifier(), points.split(50), passes=3, seed=0)
assert scores.shape == (120,), scores.shape
assert (scores > 0).all()

def make(cycle):
    trainer = Trainer(
        max_epochs=1, callbacks=[NoiseStabilityAcquisition(5, passes=3)], logger=False, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )
    return trainer, ToyClassifier()

data = ActiveLearningDataModule(ToyDataset(), initial_size=10)
trainer, model = make(0)
trainer.fit(model, data)
assert len(data.pool.history[1].indices) == 5
data = ActiveLearningDataModule(ToyDataset(), initial_size=10)
assert [record["labeled"] for record in run_cycles(make, data, cycles=2, run_dir=sys.argv[1])] == [10, 15]

for use in ("lightning_al.ActiveLearningCLI", "from lightning_al import ActiveLearningCLI"):
    try:
        exec(use)
    except ModuleNotFoundError as error:
        print(f"{use}: {error}")
print(sorted(name for name in ("wandb", "jsonargparse") if name in sys.modules))
"""

LIST = """
import sys
import lightning.pytorch
before = set(sys.modules)
import lightning_al
print(*sorted(name for name in set(sys.modules) - before if "." not in name))
print(*sorted(name for name in sys.modules if "." not in name))
"""


def run(code, *arguments):
    finished = run_python("-c", code, *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_scoring_and_training_work_without_wandb_and_jsonargparse(tmp_path):
    first, second, loaded = run(BLOCK + USE, tmp_path)
    for line in (first, second):
        assert 'The command line needs jsonargparse: pip install "jsonargparse[signatures]"' in line
        assert "The Python API works without it" in line
    assert loaded == "[]"


def test_importing_loads_nothing_heavy_that_lightning_does_not_load_itself():
    added, loaded = (set(line.split()) for line in run(LIST))
    assert "lightning_al" in added
    assert not added & {"wandb", "jsonargparse", "matplotlib", "sklearn", "torchvision", "pandas", "PIL"}
    assert "wandb" not in loaded  # some versions of what Lightning imports load scikit-learn
