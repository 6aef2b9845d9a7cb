"""JPEG files at a fraction of their size: the decoder leaves out what resizing would throw away.

`simplejpeg` decodes where it is installed and Pillow elsewhere, so training and serving may run on
machines that differ in this. Below both is libjpeg-turbo, and both get the same options: no pixel
has been seen to differ. What Pillow refuses is refused whoever decodes.
"""

import os
from pathlib import Path

from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# How much longer than the size to come the longer side stays. Resized from there an image differs
# from one of all its pixels by about one level in the mean.
_SPARE = 1.75

# Encoded bytes that an image may have beside three a pixel: profiles, thumbnails, comments.
_BESIDE = 2**20


def reduction(width: int, height: int, size: int) -> int:
    """The largest of 8, 4, 2, 1 that the sides may be divided by, if the longer becomes `size`."""
    longer, shorter = max(width, height), min(width, height)
    fits = (n for n in (8, 4, 2) if shorter >= n and longer // n >= _SPARE * size)
    return next(fits, 1)


def decode_jpeg(
    opened: Image.Image, file: str | os.PathLike | bytes, size: int
) -> tuple[Image.Image, tuple[float, float]]:
    """Decodes a JPEG whose header Pillow has read, at 1, 1/2, 1/4 or 1/8 of its size.

    Args:
      opened: from Pillow; nothing of it is decoded yet, and it is not too large.
      file: where it is from: a path, or the encoded file itself.
      size: that the longer side will be scaled to.

    Returns:
      an image that knows the file's EXIF data, and its width and height in pixels, not rounded: of
      15 pixels an eighth is two, and the last of them is not whole. An image from Pillow is decoded
      when its pixels are read, and may still turn out to be damaged.
    """
    width, height = opened.size
    n = reduction(width, height, size)
    decoded = None
    # Other layouts of colour (CMYK, often inverted) are Pillow's.
    if simplejpeg is not None and opened.mode in ("RGB", "L"):
        decoded = _decode_quickly(opened, file, n)
    if decoded is None:
        opened.draft(opened.mode, (width // n, height // n))
        decoded = opened
    return decoded, (width / n, height / n)


def _decode_quickly(
    opened: Image.Image, file: str | os.PathLike | bytes, n: int
) -> Image.Image | None:
    """Decodes with simplejpeg; None for what it warns of, so that Pillow says if it can be used."""
    width, height = opened.size
    data = _content(file, 3 * width * height + _BESIDE)
    if data is None:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // n), min_width=-(-width // n)
        )
    except ValueError:
        return None
    decoded = Image.fromarray(pixels)
    decoded.info = dict(opened.info)
    return decoded


def _content(file: str | os.PathLike | bytes, most: int) -> bytes | None:
    """The whole file; None above `most` bytes, where Pillow reads it piece by piece."""
    if isinstance(file, bytes):
        return file
    path = Path(file)
    return path.read_bytes() if path.stat().st_size <= most else None
