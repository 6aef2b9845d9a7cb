"""One path for JPEG with two decoders: simplejpeg, which the tests need, and Pillow."""

import io

import numpy as np
from PIL import Image
import pytest
import simplejpeg

from moemoe_jax.data import jpeg
from moemoe_jax.data.images import ImageError, load_image, shrink_image
from moemoe_jax.data.jpeg import reduction

LIMIT = 64_000_000


def photo(width, height, seed=0):
    """Spots of all sizes on a grey ground: most of it is smooth, as in a photograph."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for cells in (3, 7, 15, 31, 63):
        spots = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += (np.asarray(spots.resize((width, height), Image.BICUBIC)) - 128.0) / 2
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def encoded(image, format="JPEG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def both(data, size, monkeypatch):
    """What the two decoders make of a file, and how many files simplejpeg decoded."""
    calls = []

    class Counted:
        @staticmethod
        def decode_jpeg(*arguments, **options):
            pixels = simplejpeg.decode_jpeg(*arguments, **options)
            calls.append(pixels.shape)
            return pixels

    monkeypatch.setattr(jpeg, "simplejpeg", Counted)
    quick = load_image(data, size, LIMIT)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    return quick, load_image(data, size, LIMIT), calls


@pytest.mark.parametrize("size", [100, 40, 20, 10])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90}),
        ("RGB", {"quality": 60, "subsampling": "4:4:4"}),
        ("RGB", {"progressive": True}),
        ("RGB", turned(6)),
        ("RGB", {"format": "MPO", "save_all": True, "append_images": [photo(90, 90)]}),
        ("L", {}),
    ],
)
def test_both_decoders_give_the_same_pixels(mode, options, size, monkeypatch):
    data = encoded(photo(203, 157).convert(mode), **options)
    quick, plain, calls = both(data, size, monkeypatch)
    # 203 // 2 is 175 % of 40 and not of 100, 203 // 4 of 20, 203 // 8 of 10.
    n = {100: 1, 40: 2, 20: 4, 10: 8}[size]
    assert calls == [(-(-157 // n), -(-203 // n), 3)]
    difference = np.abs(quick.astype(int) - plain)
    assert difference.mean() <= 0.1 and difference.max() <= 2  # levels of 0..255
    assert plain.std() > 20  # there is something to see


def test_what_simplejpeg_is_not_asked_is_read_by_pillow(monkeypatch, tmp_path):
    cmyk = encoded(Image.new("CMYK", (90, 90), (0, 255, 255, 0)))
    quick, plain, calls = both(cmyk, 8, monkeypatch)
    np.testing.assert_array_equal(quick, plain)
    assert not calls
    # A file with far more bytes than its pixels can need is not read whole.
    (tmp_path / "long.jpg").write_bytes(encoded(photo(64, 64)) + bytes(2**21))
    assert both(tmp_path / "long.jpg", 8, monkeypatch)[2] == []
    (tmp_path / "short.jpg").write_bytes(encoded(photo(64, 64)))
    assert len(both(tmp_path / "short.jpg", 8, monkeypatch)[2]) == 1


def test_what_is_damaged_is_refused_whoever_decodes(monkeypatch):
    whole = encoded(photo(203, 157))
    for data in (whole[:-2], whole[:-400], whole[: len(whole) // 2]):
        said = []
        for decoder in (simplejpeg, None):
            monkeypatch.setattr(jpeg, "simplejpeg", decoder)
            with pytest.raises(ImageError, match="unreadable image") as caught:
                load_image(data, 16, LIMIT)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_a_file_that_simplejpeg_warns_of_is_read_by_pillow(monkeypatch):
    # Two bytes that belong to nothing, behind the first segment: all pixels are there.
    data = encoded(photo(64, 64))
    data = data[:20] + b"\x12\x34" + data[20:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(data)
    quick, plain, calls = both(data, 16, monkeypatch)
    np.testing.assert_array_equal(quick, plain)
    assert not calls


def test_a_fraction_of_the_size_is_as_sharp_as_all_of_it(monkeypatch):
    image = photo(1000, 750)
    whole = load_image(encoded(image, "PNG"), 256, LIMIT).astype(int)
    _, plain, _ = both(encoded(image, quality=95), 256, monkeypatch)
    assert reduction(1000, 750, 256) == 2
    assert np.abs(plain - whole).mean() < 1.5


def test_how_much_is_left_out_by_hand():
    assert reduction(1000, 1000, 256) == 2  # 500 is 1.95 of 256
    assert reduction(800, 600, 256) == 1  # 400 is 1.56
    assert reduction(4000, 3000, 256) == 8  # 500
    assert reduction(3000, 4000, 300) == 4  # 1000; 500 is 1.67
    assert reduction(4000, 6, 100) == 4  # an eighth of 6 is none
    assert reduction(10, 10, 64) == 1


# --- images made smaller once, to be loaded many times --------------------------------------------


@pytest.mark.parametrize("options", [{}, {"format": "PNG"}, turned(8)])
def test_a_shrunk_image_gives_the_same_pixels(options):
    data = encoded(photo(203, 157), **options)
    small = shrink_image(data, 64, LIMIT)
    with Image.open(io.BytesIO(small)) as opened:
        assert (opened.format, max(opened.size)) == ("PNG", 64)
    np.testing.assert_array_equal(load_image(small, 64, LIMIT), load_image(data, 64, LIMIT))
    difference = np.abs(load_image(small, 40, LIMIT).astype(int) - load_image(data, 40, LIMIT))
    assert 0 < difference.mean() <= 2.0


def test_an_image_that_is_no_larger_stays_as_it_is(tmp_path):
    data = encoded(photo(64, 30))
    assert shrink_image(data, 64, LIMIT) is data
    (tmp_path / "a.jpg").write_bytes(data)
    assert shrink_image(tmp_path / "a.jpg", 64, LIMIT) == data
    with pytest.raises(ImageError, match="image too large: 64 x 30"):
        shrink_image(data, 16, 1000)
    with pytest.raises(ImageError, match="unreadable image"):
        shrink_image(data[:-300], 16, LIMIT)
