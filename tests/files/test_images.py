"""An uploaded image: what it becomes, and the sentence for whatever is none."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from fgnet_lib.files import images
from fgnet_lib.files.images import read_image

VOXEL = (40.0, 8.0, 8.0)
GREY = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)


def encode(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_grey_image_is_a_section(kind):
    volume = read_image("own", encode(GREY, kind), VOXEL)
    np.testing.assert_array_equal(volume.raw, GREY[None])
    assert volume.voxel_size == VOXEL and volume.name == "own"


def test_colours_become_grey():
    grey = np.repeat(GREY[..., None], 3, axis=-1)
    assert np.abs(read_image("own.png", encode(grey, "PNG"), VOXEL).raw.astype(int) - GREY).max() <= 1
    assert read_image("own.jpg", encode(grey, "JPEG"), VOXEL).shape == (1, 40, 50)


def test_the_pages_of_a_tiff_are_sections():
    stack = np.random.default_rng(1).integers(0, 256, (3, 40, 50), np.uint8)
    np.testing.assert_array_equal(read_image("own.tif", tiff(stack, photometric="minisblack"), VOXEL).raw, stack)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_values_of_more_bits_are_stretched(dtype):
    ramp = (np.arange(2000).reshape(40, 50) * 10 + 500).astype(dtype)
    raw = read_image("own.tif", tiff(ramp), VOXEL).raw[0].ravel()
    assert raw.dtype == np.uint8 and (np.diff(raw.astype(int)) >= 0).all() and (raw[0], raw[-1]) == (0, 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_as_0_is_turned_round(dtype):
    black, white = (tiff(GREY.astype(dtype), photometric=f"minis{colour}") for colour in ("black", "white"))
    black, white = (read_image("own.tif", content, VOXEL).raw.astype(int) for content in (black, white))
    assert np.abs(black - (255 - white)).max() <= 1


def test_any_damage_of_the_head_of_a_tiff_gets_a_sentence():
    """Each byte of its tags in turn; Pillow raises errors of many kinds, and says things that only it understands."""
    whole = tiff(np.stack([GREY, GREY]), photometric="minisblack", metadata=None)
    for at in range(8, 200):
        content = bytearray(whole)
        content[at] ^= 255
        try:
            read_image("own.tif", bytes(content), VOXEL)
        except ValueError as error:
            assert re.search(r"own.tif (cannot be read as an image; choose|has .* pixels|differ in size)", str(error))


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is large and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as an image"),
        (b"hello", "cannot be read as an image"),
        (encode(GREY, "PNG")[:300], "cannot be read as an image"),
        (encode(GREY, "GIF"), "cannot be read as an image"),  # an image, of a format that is not wanted
        (encode(GREY[:20], "PNG"), "has 20 x 50 pixels"),
        (png_of(100_000, 100_000), "has 100000 x 100000 pixels|cannot be read"),
        (png_of(1025, 40), "has 40 x 1025 pixels"),
        (encode(GREY, "PNG") + bytes(images.MAX_BYTES), "has 8.0 MB"),
        (b"".join([tiff(GREY)])[:100], "cannot be read as an image"),
    ],
)
def test_a_wrong_file_gets_a_sentence(content, sentence):
    with pytest.raises(ValueError, match=f"^own.png ({sentence}).*; choose a PNG, JPEG or TIFF"):
        read_image("own.png", content, VOXEL)


def test_pages_are_checked_one_by_one(monkeypatch):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY)
        writer.write(GREY[:, :40])
    with pytest.raises(ValueError, match="pages of own.tif differ"):
        read_image("own.tif", file.getvalue(), VOXEL)
    monkeypatch.setattr(images, "MAX_VOXELS", 3999)
    with pytest.raises(ValueError, match="2 pages of 40 x 50 pixels; at most 3,999"):
        read_image("own.tif", tiff(np.stack([GREY] * 2), photometric="minisblack"), VOXEL)
