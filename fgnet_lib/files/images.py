"""A small image that somebody uploads, read without trust: its size is checked before a pixel is decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageSequence

from fgnet_lib.volumes import FormatError, Volume

MAX_BYTES = 8_000_000  # notebook servers cut the connection at a message of 10 MB
MIN_SIDE, MAX_SIDE = 32, 1024  # pixels
MAX_VOXELS = 16_000_000
PHOTOMETRIC = 262  # the number of the tag in which a TIFF says whether 0 is black
FORMATS = ("PNG", "JPEG", "TIFF")
ALLOWED = f"a PNG, JPEG or TIFF of {MIN_SIDE} to {MAX_SIDE} pixels a side"


def read_image(name: str, content: bytes, voxel_size: tuple[float, float, float]) -> Volume:
    """Return the image of an uploaded file as a volume: a section, or a stack from a TIFF of several pages.

    Colours become grey. Values of more than 8 bits are stretched from their 0.1st to their 99.9th percentile.

    Args:
        name: of the file, for messages.
        content: of the file.
        voxel_size: nm along z, y, x, which such files rarely know.

    Raises:
        FormatError: too large, too small, damaged, or no such image; the message is a sentence for the reader.
    """
    if len(content) > MAX_BYTES:
        raise FormatError(f"{name} has {len(content) / 1e6:.1f} MB; choose {ALLOWED}, at most {MAX_BYTES // 10**6} MB.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pages = []
            for page in ImageSequence.Iterator(image):
                _check_size(name, page)
                pages.append(_grey(page))
    except FormatError:
        raise
    except Exception as error:  # whatever Pillow's decoders raise
        raise FormatError(f"{name} cannot be read as an image; choose {ALLOWED}.") from error
    if len({page.shape for page in pages}) > 1:
        raise FormatError(f"The pages of {name} differ in size; save them as a stack of equal sections.")
    stack = np.stack(pages)
    if stack.dtype != np.uint8:
        low, high = np.percentile(stack, (0.1, 99.9))
        stack = (np.clip((stack - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    return Volume(stack, voxel_size, name=name)


def _check_size(name: str, image: Image.Image) -> None:
    pages, (width, height) = getattr(image, "n_frames", 1), image.size
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise FormatError(f"{name} has {height} x {width} pixels; choose {ALLOWED}: cut out or shrink a part first.")
    if pages * width * height > MAX_VOXELS:
        raise FormatError(f"{name} has {pages} pages of {height} x {width} pixels; at most {MAX_VOXELS:,} voxels fit.")


def _grey(page: Image.Image) -> np.ndarray:
    """Return a page as grey values (y, x), uint8 or float32."""
    if page.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(page, np.float32))
        # 0 is white in some TIFFs; Pillow turns those of up to 8 bits round by itself
        return -values if getattr(page, "tag_v2", {}).get(PHOTOMETRIC) == 0 else values
    return np.asarray(page.convert("L"))
