"""The dataset of a run, made again from its settings, to display samples that are no files."""

import warnings
from pathlib import Path
from typing import Any

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.storage.run_folder import RunFolder, RunRefusedError
from lightning_al.storage.settings import read_settings


def dataset_of(run: Path) -> Any:
    """Return the dataset of a run as the pool reads it: without augmentation, by dataset index.

    Args:
        run: The folder of a run of `lightning-al fit`.

    Raises:
        RunRefusedError: If its settings do not say how to make the dataset.

    """
    from jsonargparse import ArgumentParser

    file = RunFolder(run).config_file
    section = read_settings(file).get("data") if file.exists() else None
    if not isinstance(section, dict) or "datamodule_or_train_dataset" not in section:
        raise RunRefusedError(
            f"The queue in {run} has samples without a file, and {file.name} there does not say how to make the "
            "dataset. Run `lightning-al fit`, give the dataset an attribute `paths`, or use `--export` and `--import`."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ActiveLearningDataModule, "data")
    # nothing that stores a pool
    config = parser.parse_object({"data": {**section, "pool_file": None}})
    with warnings.catch_warnings():
        # its successor is missing from jsonargparse versions that Lightning allows
        warnings.simplefilter("ignore", DeprecationWarning)
        datamodule: ActiveLearningDataModule = parser.instantiate_classes(config).data
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule.pool_dataloader([], shard=False).dataset.dataset  # type: ignore[attr-defined]
