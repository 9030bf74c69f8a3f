"""A datamodule of plain datasets, so that a dataset is handled as a datamodule is."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset


def to_datamodule(
    data: Any, val: Any, test: Any, *, batch_size: int | None, num_workers: int | None
) -> LightningDataModule:
    """Return a datamodule as it is, and datasets as one.

    Args:
        data: A datamodule, or the training data.
        val: The validation data, or None.
        test: The test data, or None.
        batch_size: Samples per batch of datasets; None for 32.
        num_workers: Worker processes per loader of datasets; None for none.

    Raises:
        TypeError: If the training data is neither.
        ValueError: If datasets come with a datamodule.

    """
    if not isinstance(data, LightningDataModule):
        return DatasetsModule(data, val, test, batch_size=batch_size or 32, num_workers=num_workers or 0)
    if val is not None or test is not None:
        raise ValueError(
            "`ActiveLearningDataModule(val_dataset=..., test_dataset=...)` go with a training dataset; a "
            "LightningDataModule brings its own `val_dataloader` and `test_dataloader`."
        )
    return data


class DatasetsModule(LightningDataModule):
    """Plain loaders over given datasets, so that a dataset is handled as a datamodule is.

    Args:
        train: The training data.
        val: The validation data, or None.
        test: The test data, or None.
        batch_size: Samples per batch.
        num_workers: Worker processes per loader.

    Raises:
        TypeError: If the training data is not map-style.

    """

    def __init__(
        self, train: Any, val: Any = None, test: Any = None, *, batch_size: int = 32, num_workers: int = 0
    ) -> None:
        super().__init__()
        map_style = hasattr(train, "__getitem__") and hasattr(train, "__len__")
        if isinstance(train, (IterableDataset, DataLoader)) or not map_style:
            raise TypeError(
                f"`ActiveLearningDataModule({type(train).__name__})`: expected a LightningDataModule or a map-style "
                "dataset (with `__getitem__` and `__len__`); samples need indices to be labeled by."
            )
        self.train, self.val, self.test, self.batch_size = train, val, test, batch_size
        self._options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
        # a hook counts as overridden only where there is data for it
        if val is not None:
            setattr(self, "val_dataloader", self._val_loader)  # noqa: B010  # mypy forbids assigning a method
        if test is not None:
            setattr(self, "test_dataloader", self._test_loader)  # noqa: B010

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader over the training data."""
        return DataLoader(self.train, shuffle=True, **self._options)

    def _val_loader(self) -> DataLoader[Any]:
        return DataLoader(self.val, **self._options)

    def _test_loader(self) -> DataLoader[Any]:
        return DataLoader(self.test, **self._options)
