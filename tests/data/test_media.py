import wave

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from lightning_al.data.media import LONGEST_SIDE, LONGEST_TEXT, Sound, media_of, save_media


def gradient(*shape):
    return torch.linspace(0, 1, int(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize(
    ("sample", "mode", "size"),
    [
        ((gradient(3, 20, 30), 1), "RGB", (30, 20)),
        ((gradient(1, 8, 8), 1), "L", (8, 8)),
        ((gradient(28, 28), 1), "L", (28, 28)),
        (gradient(20, 30, 4), "RGBA", (30, 20)),
        ({"pixel_values": gradient(3, 20, 30), "labels": 1}, "RGB", (30, 20)),
        (({"image": gradient(3, 9, 9)}, 1), "RGB", (9, 9)),
        (gradient(1, 16, 20, 30).numpy(), "L", (30, 20)),
        ((Image.new("CMYK", (30, 20)), 1), "RGB", (30, 20)),
        ([gradient(3, 600, 300), 1], "RGB", (LONGEST_SIDE // 2, LONGEST_SIDE)),
    ],
)
def test_pictures(sample, mode, size):
    picture = media_of(sample)
    assert (picture.mode, picture.size) == (mode, size)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (torch.tensor([0.0, 0.25, 1.0]), [0, 64, 255]),  # shares
        (torch.tensor([0.0, 100.0, 255.0]), [0, 100, 255]),  # bytes as floats
        (torch.tensor([-2.0, 0.0, 2.0]), [0, 128, 255]),  # normalized: the range is spanned
        (torch.tensor([0, 100, 255], dtype=torch.uint8), [0, 100, 255]),
        (torch.tensor([0, 8, 16]), [0, 8, 16]),
        (torch.tensor([0.0, 500.0, 1000.0]), [0, 128, 255]),  # 16 bits
        (torch.tensor([5.0, 5.0, 5.0]), [5, 5, 5]),
        (torch.tensor([0.0, 1.0, 0.5], dtype=torch.bfloat16), [0, 255, 128]),
    ],
)
def test_values_of_any_range_become_bytes(pixels, expected):
    picture = media_of((pixels.repeat_interleave(12).reshape(1, 6, 6), 0))
    assert np.asarray(picture).ravel()[::12].tolist() == expected


@pytest.mark.parametrize(
    "sample",
    [
        (torch.rand(64), 1),
        (torch.rand(3, 4), 1),
        (torch.full((1, 8, 8), torch.nan), 1),
        (torch.rand(7, 8, 8), 1),
        {"features": 3, "label": 1},
        (np.array(["a", "b"]), 1),
        None,
        (),
    ],
)
def test_what_nobody_can_look_at_is_left_out(sample):
    assert media_of(sample) is None


@pytest.mark.parametrize("sample", [("It works.", 1), {"text": "It works.", "label": 1}, {"sentence": "It works."}])
def test_texts(sample):
    assert media_of(sample) == "It works."


def test_a_long_text_is_cut():
    text = media_of(("x" * 5000, 1))
    assert len(text) == LONGEST_TEXT
    assert text.endswith("x…")


@pytest.mark.parametrize(
    "sample",
    [
        {"audio": {"array": np.sin(np.arange(8000) / 10), "sampling_rate": 16000}, "label": 1},
        (torch.sin(torch.arange(8000) / 10).unsqueeze(0), 16000, "yes", "speaker", 0),  # as torchaudio's SPEECHCOMMANDS
    ],
)
def test_recordings(sample, tmp_path):
    sound = media_of(sample)
    assert isinstance(sound, Sound)
    assert sound.rate == 16000
    with wave.open(str(tmp_path / save_media(sound, tmp_path, "7")), "rb") as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 16000, 8000)
        values = np.frombuffer(file.readframes(8000), "<i2") / 32767
    np.testing.assert_allclose(values, np.sin(np.arange(8000) / 10), atol=1e-4)


def test_a_stereo_recording_keeps_its_channels(tmp_path):
    sound = media_of({"audio": np.stack([np.zeros(50), np.ones(50)]), "sample_rate": 100})
    with wave.open(str(tmp_path / save_media(sound, tmp_path, "7")), "rb") as file:
        assert file.getnchannels() == 2
        values = np.frombuffer(file.readframes(50), "<i2").reshape(50, 2)
    assert values[:, 0].tolist() == [0] * 50
    assert values[:, 1].tolist() == [32767] * 50


def test_a_dataset_of_torchvision(tmp_path):
    picture = media_of(datasets.FakeData(size=1, image_size=(3, 40, 40))[0])
    assert save_media(picture, tmp_path, "0") == "0.png"
    with Image.open(tmp_path / "0.png") as file:
        assert file.tobytes() == picture.tobytes()
