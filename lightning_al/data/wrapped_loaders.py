"""The loaders of the wrapped datamodule, built once per setup."""

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_al.data.dataloaders import check_loader, first_loader
from lightning_al.numerics.seeding import RandomStream, seeded


class WrappedLoaders:
    """The training loader and the first validation loader of a datamodule, kept from one `clear` to the next.

    Args:
        datamodule: The wrapped datamodule.
        seed: Seed while the training loader is built, so that a split in there is always the same.

    """

    def __init__(self, datamodule: LightningDataModule, seed: int) -> None:
        self.datamodule = datamodule
        self.seed = seed
        self.clear()

    def clear(self) -> None:
        """Forget the loaders: the next call builds them."""
        self._pair: tuple[DataLoader[Any], DataLoader[Any] | None] | None = None
        self._trained_on = False

    def get(self) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Return the training loader, and the first validation loader if there is one."""
        if self._pair is None:
            has_validation = is_overridden("val_dataloader", self.datamodule)
            evaluation = first_loader(self.datamodule.val_dataloader()) if has_validation else None
            self._pair = (self._build(), evaluation)
        return self._pair

    def for_training(self) -> DataLoader[Any]:
        """Return the training loader; from the second call on a new one, for `reload_dataloaders_every_n_epochs`."""
        loader = self._build() if self._trained_on else self.get()[0]
        self._trained_on = True
        return loader

    def _build(self) -> DataLoader[Any]:
        with seeded(RandomStream.SETUP, self.seed):
            loader = self.datamodule.train_dataloader()
        return check_loader(loader, f"{type(self.datamodule).__name__}.train_dataloader()")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaders behind, since they may hold functions that cannot be pickled."""
        return {**self.__dict__, "_pair": None}
