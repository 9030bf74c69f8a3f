"""Images of digits, a small classifier that was trained on some of them, and fits that leave its weights alone."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule
from lightning_al.testing import ToyClassifier

LABELED = 100  # the first digits, which the classifier was trained on


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep many small operators from waiting for each other where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def digits() -> TensorDataset:
    """Return 1,797 images (64,) with values in [0, 1], in random order, and their classes."""
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return TensorDataset(torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(classes)[order])


def trained_net() -> nn.Sequential:
    """Return a fresh copy of the trained network, in eval mode."""
    net = make_net()
    net.load_state_dict(_weights())
    return net.eval()


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


@functools.cache
def _weights() -> dict[str, Tensor]:
    images, classes = digits()[:LABELED]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), classes).backward()
            optimizer.step()
    return net.state_dict()


class DigitsClassifier(ToyClassifier):
    """The trained network; training steps do not move it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained_net().train()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def make_data(dataset: Any = None, **options: Any) -> ActiveLearningDataModule:
    options = {"initial_size": range(LABELED), "pool_batch_size": 128, "candidates": 800, **options}
    return ActiveLearningDataModule(digits() if dataset is None else dataset, **options)


def fit(
    *callbacks: Callback, model: Any = None, data: ActiveLearningDataModule | None = None, **options: Any
) -> SimpleNamespace:
    """Run one real fit of a single step, and return what the assertions look at."""
    model, data = model or DigitsClassifier(), data or make_data()
    options = {
        "max_epochs": 1,
        "limit_train_batches": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    with one_thread():
        Trainer(callbacks=list(callbacks), **options).fit(model, data)
    return SimpleNamespace(
        model=model,
        pool=data.pool,
        query=data.pool.history[-1],
        picks=data.pool.history[-1].indices,
    )
