"""The sample of a dataset as a picture, a recording or a text, to be displayed."""

import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_KEYS = ("text", "sentence", "content", "document", "question")
IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x", "input", "inputs", "data")
RATE_KEYS = ("sampling_rate", "sample_rate")
# Characters of a text, so that a table of picks stays readable.
LONGEST_TEXT = 500
# Pixels on the longer side of a picture, so that a page with all picks stays small.
LONGEST_SIDE = 256
# Pixels on the shorter side of a matrix that counts as a gray picture; smaller ones are more likely features.
FEWEST_PIXELS = 6


@dataclass(frozen=True)
class Sound:
    """A recording.

    Attributes:
        values: (frames,) or (channels, frames), float32 in [-1, 1].
        rate: Frames per second.

    """

    values: npt.NDArray[np.float32]
    rate: int


Media: TypeAlias = Union["Image", Sound, str]


def media_of(sample: Any, *, full: bool = False) -> Media | None:
    """Return the picture, recording or text in a sample, or None if it has none.

    Args:
        sample: An item of a dataset: (input, label), a mapping with usual keys, or the input alone. An
            input is a PIL image, a string, or a tensor or array: (1 | 3 | 4, H, W), (H, W, 1 | 3 | 4) or (H, W) for a
            picture, (1 | 3, D, H, W) for a volume, whose middle slice is taken, (frames,) or (1 | 2, frames) with a
            sampling rate beside it for a recording.
        full: Whether pictures and texts keep their sizes.

    Returns:
        A picture of at most 256 pixels on a side, a recording, a text of at most 500 characters, or None.

    Example:
        >>> import torch
        >>> media_of((torch.rand(3, 32, 24), 7)).size
        (24, 32)
        >>> media_of({"text": "It works.", "label": 1})
        'It works.'

    """
    from PIL import Image  # which costs more to import than all of this package

    entry, rate = _entry(sample)
    if isinstance(entry, str):
        return entry if full or len(entry) <= LONGEST_TEXT else f"{entry[: LONGEST_TEXT - 1]}…"
    if isinstance(entry, Image.Image):
        return _copy(entry, full)
    if not isinstance(entry, (Tensor, np.ndarray)):
        return None
    values = np.asarray(entry.detach().float().cpu() if isinstance(entry, Tensor) else entry)
    if values.dtype.kind not in "fiub":
        return None
    if rate is not None and values.size and (values.ndim == 1 or (values.ndim == 2 and len(values) <= 2)):
        return Sound(values.astype(np.float32).clip(-1, 1), rate)
    pixels = _pixels(values)
    return None if pixels is None else _copy(Image.fromarray(pixels), full)


def save_media(media: "Image | Sound", folder: Path, stem: str) -> str:
    """Write a picture or a recording.

    Args:
        media: A picture or a recording.
        folder: An existing folder.
        stem: The name of the file without its suffix.

    Returns:
        The name of the file: PNG or WAV.

    """
    suffix, content = encode_media(media)
    (folder / f"{stem}.{suffix}").write_bytes(content)
    return f"{stem}.{suffix}"


def encode_media(media: "Image | Sound") -> tuple[str, bytes]:
    """Return a picture as `"png"` and the content of a file, a recording as `"wav"` and that."""
    buffer = io.BytesIO()
    if not isinstance(media, Sound):
        media.save(buffer, "PNG")
        return "png", buffer.getvalue()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if media.values.ndim == 1 else len(media.values))
        file.setsampwidth(2)
        file.setframerate(media.rate)
        file.writeframes((media.values.T * 32767).astype("<i2").tobytes())
    return "wav", buffer.getvalue()


def _entry(sample: Any) -> tuple[Any, int | None]:
    """Return the input of a sample, and the sampling rate beside it, if there is one."""
    if isinstance(sample, Mapping):
        audio = sample.get("audio")
        if isinstance(audio, Mapping):
            return audio.get("array"), _rate(audio)
        entry = next((sample[key] for key in (*TEXT_KEYS, *IMAGE_KEYS) if key in sample), audio)
        return entry, _rate(sample)
    if isinstance(sample, (list, tuple)) and sample:
        # (waveform, sample_rate, ...), as torchaudio's datasets have it: no class is that large
        rate = sample[1] if len(sample) > 2 and isinstance(sample[1], int) and sample[1] >= 4000 else None
        return (sample[0], rate) if not isinstance(sample[0], Mapping) else _entry(sample[0])
    return sample, None


def _rate(mapping: Mapping[Any, Any]) -> int | None:
    return next((int(mapping[key]) for key in RATE_KEYS if key in mapping), None)


def _pixels(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """Return (H, W) or (H, W, 3 | 4) bytes, or None if the values are no picture."""
    if values.ndim == 4 and values.shape[0] in (1, 3):
        values = values[:, values.shape[1] // 2]
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    gray = values.ndim == 2 and min(values.shape) >= FEWEST_PIXELS
    colored = values.ndim == 3 and values.shape[-1] in (3, 4)
    if not (gray or colored) or not np.isfinite(values).all():
        return None
    return _bytes(values)


def _bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale values to 0 to 255: bytes are kept, values in [0, 1] are multiplied, others are stretched to the range."""
    low, high = float(values.min()), float(values.max())
    if values.dtype != np.uint8 and (low < 0 or high <= 1 or high > 255):
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        values = (values.astype(np.float64) - low) / max(high - low, 1e-12) * 255
    return values.round().astype(np.uint8) if values.dtype.kind == "f" else values.astype(np.uint8)


def _copy(picture: "Image", full: bool) -> "Image":
    """Return a copy in a mode that PNG supports, of at most 256 pixels on a side unless it is to keep its size."""
    picture = picture.copy() if picture.mode in ("L", "RGB", "RGBA", "1", "P", "LA") else picture.convert("RGB")
    if not full:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture
