"""Datasets for YAML, without labels: the pictures or sounds below a folder, the texts of a table."""

import os
from collections.abc import Callable, Collection
from csv import DictReader
from csv import Error as CSVError
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
AUDIO_SUFFIXES = (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav")


class ImageFiles(Dataset[tuple[Any, ...]]):
    """The pictures in a folder and all folders below it, in the order of their paths.

    A sample is `(picture,)`, or `(picture, class)` if the folders are the classes. Rotation by a camera is undone, as
    browsers do, so that a person sees what the model sees.

    Args:
        root: The folder. Files and folders whose names begin with a dot are left out, and folders that are links.
        size: Pictures are scaled to so many pixels in both directions, so that they fit into one batch; None keeps
            their sizes. Without effect on a `transform`.
        transform: Makes the input of a model from a PIL picture in RGB; None makes a tensor (3, H, W) in [0, 1].
        labels_from_folders: Whether the folders directly below `root` are the classes, numbered by name.

    Attributes:
        paths: The path of each picture.
        classes: The names of the classes; empty without `labels_from_folders`.
        targets: The class of each picture, if it is known.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no picture, or one outside the folders of the classes.

    Example:
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     folder = getfixture("tmp_path") / name
        ...     folder.mkdir()
        ...     Image.new("RGB", (20, 10)).save(folder / "1.png")
        >>> photos = ImageFiles(getfixture("tmp_path"), size=8)
        >>> len(photos), photos[0][0].shape
        (2, torch.Size([3, 8, 8]))

    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        labels_from_folders: bool = False,
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"`ImageFiles(size={size})`: expected a number of pixels, or None to keep all sizes.")
        names = _list_files(root, IMAGE_SUFFIXES, "ImageFiles")
        self.root, self.size, self.transform, self.labels_from_folders = root, size, transform, labels_from_folders
        self.paths = [os.path.join(root, name) for name in names]
        self.classes: list[str] = []
        if labels_from_folders:
            folders = [name.rpartition("/")[0].partition("/")[0] for name in names]
            if "" in folders:
                outside = self.paths[folders.index("")]
                raise ValueError(
                    f"`ImageFiles({os.fspath(root)!r}, labels_from_folders=True)`: {outside} lies in no folder of a "
                    "class. Move it into one."
                )
            self.classes = sorted(set(folders))
            numbers = {name: number for number, name in enumerate(self.classes)}
            self.targets = [numbers[folder] for folder in folders]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        from PIL import Image, ImageOps  # which costs more to import than all of this package
        from torchvision.transforms.v2.functional import to_dtype, to_image

        with Image.open(self.paths[index]) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
        if self.transform is not None:
            entry = self.transform(picture)
        else:
            scaled = picture if self.size is None else picture.resize((self.size, self.size))
            entry = to_dtype(to_image(scaled), scale=True)
        return (entry, self.targets[index]) if self.labels_from_folders else (entry,)


class AudioFiles(Dataset[tuple[Any, ...]]):
    """The sounds in a folder and all folders below it, in the order of their paths; a sample is `(load(path),)`.

    Args:
        root: As in `ImageFiles`.
        load: Makes the input of a model from the path of a file.

    Attributes:
        paths: The path of each sound.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no sound.

    """

    def __init__(self, root: str | os.PathLike[str], load: Callable[[str], Any]) -> None:
        self.root, self.load = root, load
        self.paths = [os.path.join(root, name) for name in _list_files(root, AUDIO_SUFFIXES, "AudioFiles")]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (self.load(self.paths[index]),)


class TextRows(Dataset[tuple[Any, ...]]):
    """The texts in one column of a table, in the order of its rows; a sample is `(text,)`.

    Args:
        csv: A file of comma-separated values in UTF-8 with a header.
        column: The name of the column.
        transform: Makes the input of a model from a text; None leaves it a text.

    Attributes:
        samples: The texts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the column or a cell is missing, there is no row, or the file is no such table.

    """

    def __init__(self, csv: str | os.PathLike[str], column: str, transform: Callable[[str], Any] | None = None) -> None:
        self.csv, self.column, self.transform = csv, column, transform
        source = f"`TextRows({os.fspath(csv)!r}, {column!r})`"
        with Path(csv).open(encoding="utf-8-sig", newline="") as file:
            reader = DictReader(file)
            try:
                if column not in (reader.fieldnames or ()):
                    raise ValueError(f"{source}: expected one of the columns {reader.fieldnames}.")
                self.samples: list[str] = [row[column] for row in reader]
            except (CSVError, UnicodeDecodeError) as error:
                raise ValueError(f"{source}, line {reader.line_num}: {error}; expected a table in UTF-8.") from error
        if not self.samples or None in self.samples:
            row = f"row {self.samples.index(None) + 1} lacks it" if self.samples else "there is no row"  # type: ignore[arg-type]
            raise ValueError(f"{source}: expected a text in every row, but {row}.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        text = self.samples[index]
        return (text if self.transform is None else self.transform(text),)


def _list_files(root: str | os.PathLike[str], suffixes: Collection[str], source: str) -> list[str]:
    """Return the sorted names of files relative to a folder, with `/` between folders on every system."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"`{source}({os.fspath(root)!r})`: there is no such folder.")
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]  # others are not walked
        names += [
            Path(folder, name).relative_to(root).as_posix()
            for name in files
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        ]
    if not names:
        raise ValueError(
            f"`{source}({os.fspath(root)!r})`: expected files that end with {', '.join(suffixes)}, got none."
        )
    return sorted(names)
