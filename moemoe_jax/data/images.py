"""Image files, of any kind and in any state, to square uint8 arrays.

An image from outside is opened by its header first: what is no image, or far too large, is refused
before a pixel is decoded. What can be decoded becomes upright (EXIF) RGB on white, its longer side
scaled to the size asked for, and padded with white to a square, so that no product is cut or
stretched.

Shapes: S side of the image in pixels.
"""

from collections.abc import Iterator
import contextlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from moemoe_jax.data.config import AugmentConfig
from moemoe_jax.data.jpeg import decode_jpeg

# Formats whose decoders are small and in daily use: the others only add ways to be attacked.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_JPEGS = ("JPEG", "MPO")  # the latter has several pictures, of which Pillow opens the first
_WHITE = (255, 255, 255)


class ImageError(ValueError):
    """Why an image cannot be used, in one line; the text up to the colon is the kind of reason."""


def load_image(image: str | os.PathLike | bytes, size: int, max_pixels: int) -> np.ndarray:
    """Decodes an image and fits it into a white square.

    Args:
      image: a file, or the encoded file itself. Of an animation, the first frame is taken.
      size: S.
      max_pixels: the most pixels, width times height by the header, that are decoded.

    Returns:
      uint8 [S, S, 3].

    Raises:
      ImageError: not an image, truncated, too large, or not readable.
    """
    with _opened(image, max_pixels) as opened:
        fitted = _fit(opened, image, size)
    height, width = fitted.shape[:2]
    square = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = fitted
    return square


def shrink_image(image: str | os.PathLike | bytes, size: int, max_pixels: int) -> bytes:
    """Makes an encoded image with a longer side of at most `size`, to be loaded in its place.

    It is written without loss, so loading it with S = `size` gives the very pixels that the
    original gives. With a smaller S it is resized twice, which changes the pixels of a photograph
    by less than 2 levels of 255 in the mean; with a larger one it is blurred.

    Args:
      image: as in `load_image`.
      size: of the longer side. An image that is no larger comes back as it is, not decoded.
      max_pixels: as in `load_image`.

    Returns:
      the encoded file: upright RGB on white as PNG, or the original.

    Raises:
      ImageError: as in `load_image`.
    """
    with _opened(image, max_pixels) as opened:
        if max(opened.size) <= size:
            return image if isinstance(image, bytes) else Path(image).read_bytes()
        out = io.BytesIO()
        Image.fromarray(_fit(opened, image, size)).save(out, "PNG")
        return out.getvalue()


@contextlib.contextmanager
def _opened(image: str | os.PathLike | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image by its header; all that is wrong with it inside becomes an ImageError."""
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else Path(image)
        with Image.open(file, formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise ImageError(
                    f"image too large: {width} x {height} pixels, more than the {max_pixels} of "
                    "data.max_image_pixels"
                )
            yield opened
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image too large: {_line(error)}") from None
    except FileNotFoundError:
        raise ImageError("image not found: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image: none of {', '.join(_FORMATS)}") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ImageError(f"unreadable image: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns an RGB image; what is transparent shows white."""
    if image.mode.startswith(("I", "F")):
        # 16 bits and more: convert() would clip at 255.
        values = np.asarray(image, np.float64)
        peak = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / peak), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        canvas = Image.new("RGB", alpha.size, _WHITE)
        canvas.paste(alpha, mask=alpha.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _fit(opened: Image.Image, file: str | os.PathLike | bytes, size: int) -> np.ndarray:
    """Decodes what is opened: upright RGB, uint8 [H, W, 3], its longer side of `size`."""
    if opened.format in _JPEGS:
        decoded, extent = decode_jpeg(opened, file, size)
        fitted = ImageOps.exif_transpose(_resize(decoded.convert("RGB"), extent, size))
    else:
        image = _to_rgb(ImageOps.exif_transpose(opened))
        fitted = _resize(image, image.size, size)
    return np.asarray(fitted)


def _resize(image: Image.Image, extent: tuple[float, float], size: int) -> Image.Image:
    """Scales the upper left part of an image, of `extent` pixels, to a longer side of `size`."""
    width, height = (max(1, round(side * size / max(extent))) for side in extent)
    if (width, height) == image.size:
        return image
    box = (0.0, 0.0, *extent)
    return image.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def augment_image(
    pixels: np.ndarray, rng: np.random.Generator, config: AugmentConfig
) -> np.ndarray:
    """Flips, crops and recolours an image at random, as `config` says.

    Args:
      pixels: uint8 [S, S, 3]; left as it is.
      rng: where the randomness comes from.
      config: which changes, and how large.

    Returns:
      uint8 [S, S, 3].
    """
    if config.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if config.crop_scale_min < 1.0:
        pixels = _random_crop(pixels, rng, config.crop_scale_min)
    if config.brightness > 0 or config.contrast > 0:
        brightness = 1.0 + config.brightness * rng.uniform(-1.0, 1.0)
        contrast = 1.0 + config.contrast * rng.uniform(-1.0, 1.0)
        mean = float(pixels.mean()) * brightness
        # Both are functions of one byte, so 256 of them are computed, not one a pixel.
        table = (np.arange(256) * brightness - mean) * contrast + mean
        pixels = np.clip(np.rint(table), 0, 255).astype(np.uint8)[pixels]
    return pixels


def _random_crop(pixels: np.ndarray, rng: np.random.Generator, scale_min: float) -> np.ndarray:
    """Cuts out a share of the area, of aspect 3:4 to 4:3, and scales it back to the full size."""
    size = pixels.shape[0]
    side = np.sqrt(rng.uniform(scale_min, 1.0))
    stretch = np.sqrt(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
    width, height = (size * min(1.0, side * stretch), size * min(1.0, side / stretch))
    left, top = rng.uniform(0.0, size - width), rng.uniform(0.0, size - height)
    box = (left, top, left + width, top + height)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
