import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from moemoe_jax.data.config import AugmentConfig
from moemoe_jax.data.images import ImageError, augment_image, load_image

LIMIT = 64_000_000


def _encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def _noise(size=(40, 40)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_an_image_of_the_right_size_comes_back_as_it_is():
    image = _noise((8, 8))
    loaded = load_image(_encoded(image), 8, LIMIT)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, np.asarray(image))


def test_a_path_and_bytes_are_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(_encoded(_noise()))
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.png", 16, LIMIT), load_image(_encoded(_noise()), 16, LIMIT)
    )


def test_what_is_not_square_is_padded_with_white():
    # 8 x 4 black in a square of 8: two white rows above and two below.
    loaded = load_image(_encoded(Image.new("RGB", (8, 4))), 8, LIMIT)
    assert (loaded[2:6] == 0).all()
    assert (loaded[:2] == 255).all() and (loaded[6:] == 255).all()
    assert load_image(_encoded(Image.new("RGB", (500, 1))), 8, LIMIT).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (9, 9), 80), (80, 80, 80)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
        (Image.new("RGB", (9, 9), (9, 8, 7)).quantize(4), (9, 8, 7)),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), (255, 255, 255)),  # transparent shows white
        (Image.new("RGBA", (9, 9), (0, 0, 0, 51)), (204, 204, 204)),  # a fifth of black
        (Image.new("LA", (9, 9), (0, 255)), (0, 0, 0)),
        (Image.fromarray(np.full((9, 9), 128 * 257, np.uint16)), (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb_on_white(image, colour):
    loaded = load_image(_encoded(image), 4, LIMIT)
    np.testing.assert_array_equal(loaded, np.broadcast_to(np.uint8(colour), (4, 4, 3)))


def test_cmyk_and_animations_and_jpeg_drafts_are_read():
    cmyk = load_image(_encoded(Image.new("CMYK", (90, 90), (0, 255, 255, 0)), "JPEG"), 8, LIMIT)
    np.testing.assert_allclose(cmyk[4, 4], (255, 0, 0), atol=3)
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    gif = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(gif, 8, LIMIT)[0, 0], (255, 0, 0))
    large = Image.new("RGB", (800, 600), (10, 200, 30))
    np.testing.assert_allclose(
        load_image(_encoded(large, "JPEG"), 8, LIMIT)[4, 4], (10, 200, 30), atol=3
    )


def test_exif_turns_an_image_upright():
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (0, 0, 8, 4))  # the upper half is black
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    loaded = load_image(_encoded(image, exif=exif), 8, LIMIT)
    assert (loaded[:4] == 255).all() and (loaded[4:] == 0).all()


def _png_header(width, height):
    """A PNG that claims a size and holds nothing."""

    def chunk(kind, body):
        code = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + code

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"hello, I am called photo.jpg", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (_encoded(_noise(), "JPEG")[:-300], "unreadable image"),
        (_encoded(_noise())[:200], "unreadable image"),
        (_png_header(9_000, 9_000), "image too large: 9000 x 9000"),
        (_png_header(60_000, 60_000), "image too large"),
        (_png_header(0, 5), "image"),
        (_encoded(_noise())[:60] + b"\xff" * 60 + _encoded(_noise())[120:], "unreadable image"),
    ],
)
def test_bad_images_are_refused_in_one_line(data, reason):
    with pytest.raises(ImageError) as caught:
        load_image(data, 8, LIMIT)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "none.jpg", 8, LIMIT)
    with pytest.raises(ImageError, match="unreadable"):
        load_image(tmp_path, 8, LIMIT)


def test_augmentation_is_off_by_default_and_a_function_of_the_generator():
    pixels = np.asarray(_noise((16, 16)))
    rng = np.random.default_rng
    np.testing.assert_array_equal(augment_image(pixels, rng(0), AugmentConfig()), pixels)
    config = AugmentConfig(flip=True, crop_scale_min=0.4, brightness=0.3, contrast=0.3)
    before = pixels.copy()
    first, again = (augment_image(pixels, rng(1), config) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(pixels, before)
    assert first.shape == pixels.shape and first.dtype == np.uint8
    assert (augment_image(pixels, rng(2), config) != first).any()


def test_a_flip_mirrors_half_of_the_images():
    pixels = np.asarray(_noise((4, 4)))
    flips = [
        (augment_image(pixels, np.random.default_rng(i), AugmentConfig(flip=True)) != pixels).any()
        for i in range(40)
    ]
    assert 8 < sum(flips) < 32


def test_brightness_by_hand():
    # A grey of 100 has no contrast, so a brightness factor b makes it 100 b.
    pixels = np.full((2, 2, 3), 100, np.uint8)
    factor = 1.0 + 0.5 * np.random.default_rng(3).uniform(-1.0, 1.0)
    changed = augment_image(pixels, np.random.default_rng(3), AugmentConfig(brightness=0.5))
    np.testing.assert_array_equal(changed, np.full_like(pixels, np.rint(100 * factor)))
