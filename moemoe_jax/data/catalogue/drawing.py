"""Draws a product: background, body, patterned cloth, details, noise.

The picture is a function of the product type, the values that are to be shown and a seed for what
means nothing (background, place, scale, noise). A value that is not shown cannot leak, since this
module never sees it: cloth without a shown colour is grey, without a shown pattern plain, and
sleeves or a hem that are not shown are covered by a card. Drawn at twice the size, then reduced.
"""

from collections.abc import Mapping
import colorsys
import functools
import io
import random
import zlib

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from moemoe_jax.data.catalogue import schema
from moemoe_jax.data.catalogue.details import draw_covers, draw_details
from moemoe_jax.data.catalogue.figures import FIGURES, Pen, draw_body, draw_cloth

COLORS = {
    "red": (208, 28, 36), "orange": (246, 132, 20), "yellow": (250, 214, 40),
    "green": (28, 146, 62), "blue": (34, 74, 204), "purple": (124, 44, 164),
    "pink": (246, 122, 178), "black": (34, 32, 36),
}  # fmt: skip
GREY = (158, 158, 158)  # cloth whose colour is not shown
_ANY = [0] + [255] * 255  # a table that turns every pixel that is not 0 into 255
SKINS = ((236, 196, 164), (214, 166, 128), (176, 122, 84))


def render(
    product_type: str, shown: Mapping[str, str], seed: int = 0, size: int = 64
) -> Image.Image:
    """Draws one product.

    Args:
      product_type: one of `schema.PRODUCT_TYPES`.
      shown: the values to show, by drawable attribute of that type.
      seed: decides background, place, scale, skin, light and noise.
      size: side of the picture in pixels.

    Returns:
      An RGB image of `size` x `size` pixels.

    Raises:
      ValueError: an attribute that this type does not have or that cannot be drawn.
    """
    asked = schema.ASKED[product_type]
    for name in shown:
        if name not in asked or name not in schema.DRAWABLE:
            raise ValueError(f"{name!r} of {product_type!r} cannot be drawn")
    shown, figure = dict(shown), FIGURES[product_type]
    rng = random.Random(seed)
    side = 2 * size
    canvas = _background(rng, side)
    skin = rng.choice(SKINS)
    scale = side / 64 * rng.uniform(0.9, 1.0)
    room = (side - 64 * scale) / 2
    shift = 0.03 * side
    dx, dy = (room + rng.uniform(-shift, shift) for _ in range(2))

    pen = Pen(ImageDraw.Draw(canvas), scale, dx, dy)
    draw_body(pen, figure, shown, skin)
    mask = Image.new("L", (side, side))
    draw_cloth(Pen(ImageDraw.Draw(mask), scale, dx, dy), figure, shown)
    color = COLORS.get(shown.get("color", ""), GREY)
    color = tuple(max(0, min(255, round(c + rng.uniform(-8, 8)))) for c in color)
    _paste_cloth(canvas, mask, color, shown.get("pattern type"))
    draw_details(pen, figure, shown, skin)
    draw_covers(pen, figure, asked, shown)
    return _noisy(canvas.reduce(2), rng)


def encode_png(image: Image.Image) -> bytes:
    """The PNG file of an image."""
    buffer = io.BytesIO()
    # Noise has no repeats to find: Huffman coding alone is quicker and the file no larger.
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return buffer.getvalue()


def _background(rng: random.Random, side: int) -> Image.Image:
    """A light gradient between four corners of one hue, sometimes with a floor or soft discs."""
    hue, corners = rng.random(), Image.new("RGB", (2, 2))
    for k in range(4):
        tint = colorsys.hsv_to_rgb(hue, rng.uniform(0.0, 0.14), rng.uniform(0.84, 1.0))
        corners.putpixel((k % 2, k // 2), tuple(round(255 * c) for c in tint))
    canvas = corners.resize((side, side), Image.Resampling.BILINEAR)
    kind = rng.random()
    if kind < 0.3:
        floor = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(rng.random(), 0.12, 0.82))
        canvas.paste(floor, (0, round(side * rng.uniform(0.75, 0.92)), side, side))
    elif kind < 0.6:
        pen = ImageDraw.Draw(canvas)
        for _ in range(3):
            x, y, r = (rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.1, 0.25) * side)
            light = round(rng.uniform(215, 250))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(light, light, light))
    return canvas


def _paste_cloth(canvas: Image.Image, mask: Image.Image, color, pattern: str | None) -> None:
    dark = tuple(round(c * 0.35) for c in color)
    grown = mask.filter(ImageFilter.BoxBlur(max(1, canvas.width // 128))).point(_ANY)
    canvas.paste(dark, mask=grown)
    canvas.paste(color, mask=mask)
    if pattern is not None:
        inked = ImageChops.multiply(mask, _pattern(pattern, canvas.width))
        # Paler than the cloth but not white, so that cream details stand out from it.
        pale = tuple(round(0.5 * c + 0.5 * 250) for c in color)
        canvas.paste(pale, mask=inked)


@functools.lru_cache(maxsize=64)
def _pattern(name: str, side: int) -> Image.Image:
    """Where a pattern is inked, as a mask of `side` x `side`; not to be written to."""
    grid = side / 64
    y, x = np.mgrid[0:side, 0:side] / grid
    if name == "striped":
        inked = y % 7 < 2.6
    elif name == "pinstriped":
        inked = x % 5 < 1.5
    elif name == "checked":
        inked = (x // 4 + y // 4) % 2 == 0
    elif name == "dotted":
        inked = np.hypot(x % 6 - 3, y % 6 - 3) < 1.7
    elif name == "zigzag":
        inked = (y + np.abs(x % 10 - 5)) % 7 < 2.4
    else:  # floral: five petals around an open heart
        shifted = (x + 6 * (y // 12 % 2)) % 12 - 6
        radius, angle = np.hypot(shifted, y % 12 - 6), np.arctan2(y % 12 - 6, shifted)
        inked = (radius < 3.7 + 1.6 * np.cos(5 * angle)) & (radius > 1.3)
    return Image.fromarray(np.where(inked, 255, 0).astype(np.uint8))


def _noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    """The image under another light and with Gaussian noise."""
    pixels = np.asarray(image, np.float32)
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        pixels.shape, dtype=np.float32
    )
    pixels = pixels * rng.uniform(0.92, 1.04) + noise * rng.uniform(1.5, 5.0)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
