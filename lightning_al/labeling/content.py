"""A sample as a browser displays it: a picture, a sound, a video or a text."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lightning_al.data.media import encode_media, media_of
from lightning_al.data.targets import inputs_of
from lightning_al.storage.queue_file import QueuedSample

TEXT = "text/plain; charset=utf-8"
# Nothing else is sent, so that a file never becomes a page or a script.
_SUFFIXES = {
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/jpeg": ".jpeg .jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "audio/aac": ".aac",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".oga .ogg .opus",
    "audio/wav": ".wav",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    TEXT: ".md .txt",
}
MEDIA_TYPES = {suffix: media_type for media_type, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
# Numbers of a sample that is neither picture, sound nor text.
MOST_NUMBERS = 100


class UnreadableSampleError(ValueError):
    """A sample that cannot be displayed; the message names it and the reason."""


@dataclass(frozen=True)
class Content:
    """What a browser displays.

    Attributes:
        media_type: One of `MEDIA_TYPES`.
        data: The content of the file.

    """

    media_type: str
    data: bytes


Reader: TypeAlias = Callable[[QueuedSample], Content]


def read_path(sample: QueuedSample) -> Content:
    """Read the file of a sample; pictures that browsers do not display become PNG.

    Raises:
        UnreadableSampleError: If there is no file, or it is none that a browser displays.

    """
    if sample.path is None:
        raise UnreadableSampleError(f"Sample {sample.index} has no file, so it cannot be displayed.")
    path = Path(sample.path)
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    try:
        if media_type is not None:
            return Content(media_type, path.read_bytes())
        return Content("image/png", _to_png(path))
    except (OSError, ValueError) as error:  # of a missing file, or one that is no picture
        raise UnreadableSampleError(f"Sample {sample.index} cannot be read: {error}.") from error


def reader_of(dataset: Any) -> Reader:
    """Return a reader of the samples of a dataset, which takes the file of a sample where it has one."""

    def read(sample: QueuedSample) -> Content:
        if sample.path is not None:
            return read_path(sample)
        entry = dataset[sample.index]
        media = media_of(entry, full=True)
        if isinstance(media, str):
            return Content(TEXT, media.encode())
        if media is None:
            return Content(TEXT, _format_numbers(sample.index, inputs_of(entry)).encode())
        suffix, data = encode_media(media)
        return Content(MEDIA_TYPES[f".{suffix}"], data)

    return read


def _to_png(path: Path) -> bytes:
    from PIL import Image, ImageOps

    buffer = io.BytesIO()
    with Image.open(path) as picture:
        ImageOps.exif_transpose(picture).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _format_numbers(index: int, inputs: Any) -> str:
    if isinstance(inputs, dict):
        return "\n".join(f"{name}: {_format_numbers(index, value)}" for name, value in inputs.items())
    values = np.asarray(inputs)
    if values.dtype.kind not in "fiub":
        raise UnreadableSampleError(
            f"Sample {index} is a {type(inputs).__name__}, which cannot be displayed: expected a picture, a sound, a "
            "text or numbers. Give the dataset an attribute `paths`, or label by `--export` and `--import`."
        )
    more = ", ..." if values.size > MOST_NUMBERS else ""
    return ", ".join(f"{value:.6g}" for value in values.flat[:MOST_NUMBERS].tolist()) + more
