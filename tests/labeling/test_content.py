import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_al.labeling.content import TEXT, UnreadableSampleError, read_path, reader_of
from lightning_al.storage.queue_file import QueuedSample


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a.JPG", "image/jpeg"), ("a.mp3", "audio/mpeg"), ("a.mp4", "video/mp4"), ("a.txt", TEXT), ("a.md", TEXT)],
)
def test_a_file_that_browsers_display_is_sent_as_it_is(tmp_path, name, media_type):
    (tmp_path / name).write_bytes(b"<script>")
    content = read_path(QueuedSample(3, str(tmp_path / name)))
    assert (content.media_type, content.data) == (media_type, b"<script>")


def test_another_picture_becomes_a_png(tmp_path):
    Image.new("CMYK", (30, 20)).save(tmp_path / "a.tif")
    content = read_path(QueuedSample(3, str(tmp_path / "a.tif")))
    assert content.media_type == "image/png"
    assert Image.open(io.BytesIO(content.data)).size == (30, 20)


@pytest.mark.parametrize("name", ["page.html", "picture.svg", "none.png"])
def test_what_cannot_be_displayed_is_never_sent(tmp_path, name):
    for written in ("page.html", "picture.svg"):
        (tmp_path / written).write_text("<svg onload='alert(1)'/>")
    with pytest.raises(UnreadableSampleError, match="Sample 3 cannot be read: "):
        read_path(QueuedSample(3, str(tmp_path / name)))
    with pytest.raises(UnreadableSampleError, match="Sample 3 has no file"):
        read_path(QueuedSample(3))


@pytest.mark.parametrize(
    ("entry", "media_type", "start"),
    [
        ((torch.rand(3, 300, 400), 1), "image/png", b"\x89PNG"),
        ({"audio": {"array": np.zeros(800, np.float32), "sampling_rate": 8000}}, "audio/wav", b"RIFF"),
        (("x" * 1000,), TEXT, b"x" * 1000),
        ((torch.tensor([0.25, 3.0]), 7), TEXT, b"0.25, 3"),
        ({"width": 2, "height": 0.5, "label": 1}, TEXT, b"width: 2\nheight: 0.5"),
    ],
)
def test_a_sample_of_a_dataset_is_displayed_in_full_and_without_its_target(entry, media_type, start):
    content = reader_of([entry])(QueuedSample(0))
    assert content.media_type == media_type
    assert content.data == start if media_type == TEXT else content.data.startswith(start)
    if media_type == "image/png":
        assert Image.open(io.BytesIO(content.data)).size == (400, 300)


def test_a_sample_with_a_file_is_that_file_and_another_one_says_what_to_do(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    read = reader_of([(object(),)])
    assert read(QueuedSample(0, str(tmp_path / "a.txt"))).data == b"text"
    with pytest.raises(UnreadableSampleError, match="is a object, which cannot be displayed"):
        read(QueuedSample(0))
