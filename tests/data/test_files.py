import pytest
import torch
from PIL import Image

from lightning_al import AudioFiles, ImageFiles, TextRows
from tests.image_files import pixels

NAMES = ["b/2.PNG", "a/1.png", "a/deep/3.png", "10.png", "9.jpg", ".hidden.png", ".cache/4.png", "notes.txt"]


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(NAMES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            file.write_text("x")
        else:
            Image.fromarray(pixels(1, 6, 4 + number, 3, seed=number)[0]).save(file)
    return tmp_path / "photos"


def test_pictures_are_listed_by_path_and_read_as_a_person_sees_them(root):
    photos = ImageFiles(root)
    assert photos.paths == [str(root / name) for name in ("10.png", "9.jpg", "a/1.png", "a/deep/3.png", "b/2.PNG")]
    (picture,) = photos[2]
    assert torch.equal((picture * 255).round().byte(), torch.from_numpy(pixels(1, 6, 5, 3, seed=1)[0]).permute(2, 0, 1))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.new("L", (10, 20)).save(root / "9.jpg", exif=turned)
    assert photos[1][0].shape == (3, 10, 20)
    assert ImageFiles(root, size=8)[1][0].shape == (3, 8, 8)
    assert ImageFiles(root, transform=lambda picture: picture.size)[1] == ((20, 10),)


def test_folders_are_classes_if_wanted(root):
    with pytest.raises(ValueError, match=r"10\.png lies in no folder of a class\. Move it"):
        ImageFiles(root, labels_from_folders=True)
    for name in ("10.png", "9.jpg"):
        (root / name).rename(root / "b" / name)
    photos = ImageFiles(root, labels_from_folders=True)
    assert photos.classes == ["a", "b"]
    assert [photos[index][1] for index in range(5)] == photos.targets == [0, 0, 1, 1, 1]


def test_sounds_are_listed_without_reading_them(tmp_path):
    for name in ("2.wav", "1.mp3"):
        (tmp_path / name).touch()
    sounds = AudioFiles(tmp_path, load=str.upper)
    assert [sounds[index] for index in range(len(sounds))] == [(path.upper(),) for path in sounds.paths]
    assert sounds.paths == [str(tmp_path / "1.mp3"), str(tmp_path / "2.wav")]


def test_texts_are_the_cells_of_a_column(tmp_path):
    table = tmp_path / "reviews.csv"
    table.write_text('﻿text,stars\n"One, two\nthree",5\nÄh,1\n', encoding="utf-8")
    texts = TextRows(table, "text")
    assert [texts[index] for index in range(len(texts))] == [("One, two\nthree",), ("Äh",)]
    assert TextRows(table, "stars", transform=int)[0] == (5,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda root: ImageFiles(root / "none"),
            FileNotFoundError,
            r"ImageFiles\('.*none'\)`: there is no such folder",
        ),
        (lambda root: ImageFiles(root, size=0), ValueError, r"`ImageFiles\(size=0\)`: expected a number of pixels"),
        (lambda root: AudioFiles(root, str), ValueError, r"`AudioFiles\('.*'\)`: expected files that end with \.aac"),
        (lambda root: TextRows(root / "notes.txt", "text"), ValueError, r"expected one of the columns \['x'\]"),
        (lambda root: TextRows(root / "notes.txt", "x"), ValueError, "a text in every row, but there is no row"),
        (lambda root: TextRows(root / "10.png", "x"), ValueError, "line 0: .*expected a table in UTF-8"),
    ],
)
def test_what_cannot_be_listed_says_why(root, make, error, message):
    with pytest.raises(error, match=message):
        make(root)


def test_a_row_without_the_cell_is_named(tmp_path):
    (tmp_path / "table.csv").write_text("id,text\n1,a\n2\n")
    with pytest.raises(ValueError, match="but row 2 lacks it"):
        TextRows(tmp_path / "table.csv", "text")
