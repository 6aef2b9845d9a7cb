"""Training on images that were made smaller once is training on the originals."""

import json

import chex
import pytest

from moemoe_jax.data.formats.tfds_writer import write_tfds
from moemoe_jax.data.records import Record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import open_source
from moemoe_jax.errors import UserError
from tests.data.jpeg_test import encoded, photo, turned
from tests.data.products import AUGMENT, ListSource, product, take, train

SIZE = 16


def originals(folder):
    """Products with photographs of several kinds: as files and as bytes, large and small."""
    (folder / "a.jpg").write_bytes(encoded(photo(203, 157, seed=1)))
    images = [
        folder / "a.jpg",
        encoded(photo(100, 140, seed=2), **turned(6)),
        (encoded(photo(70, 70, seed=3), "PNG"), encoded(photo(99, 9, seed=4))),
        encoded(photo(12, 10, seed=5)),
    ]
    sources = ({"title": f"red shirt {i}", "image": image} for i, image in enumerate(images))
    return ListSource(product(i, sources=one) for i, one in enumerate(sources))


def test_a_training_sees_the_same_pixels(tokenizer, tmp_path):
    source = originals(tmp_path)
    folder = write_tfds({"train": source}, tmp_path / "out", Rejects(), image_size=SIZE)
    prepared = open_source(str(tmp_path / "out"), "train", fractions={})
    assert prepared.image_size == SIZE
    assert json.loads((folder / "metadata.json").read_text()) == {"image_size": SIZE}
    stored = sum(len(bytes_) for i in range(4) for bytes_ in all_images(prepared[i]))
    assert stored < 5000 < sum(len(bytes_) for bytes_ in all_images(source[2]))
    changes = {"augment": AUGMENT, "image_size": SIZE, "cache_images_mib": 0}
    chex.assert_trees_all_equal(
        take(train(tokenizer, source=prepared, **changes), 4),
        take(train(tokenizer, source=source, **changes), 4),
    )
    # What was cut off cannot be had back, in a part of the data and in a copy of it neither.
    part = open_source(str(tmp_path / "out"), "train", fractions={"val": 0.01})
    write_tfds({"train": part}, tmp_path / "copy", Rejects())
    for one in (prepared, part, open_source(str(tmp_path / "copy"))):
        with pytest.raises(UserError, match="image_size=16, but data"):
            train(tokenizer, source=one, image_size=24)


def all_images(record):
    value = record.sources["image"]
    return value if isinstance(value, tuple) else (value,)


def test_an_image_that_cannot_be_made_smaller_is_a_reject(tmp_path):
    broken = encoded(photo(100, 100))[:-400]
    source = ListSource([Record("a", {"title": "t", "image": broken}), product(1)])
    rejects = Rejects(tmp_path / "rejects.jsonl")
    write_tfds({"train": source}, tmp_path, rejects, image_size=SIZE)
    assert rejects.reasons == {"unreadable image": 1}
    (listed,) = map(json.loads, rejects.path.read_text().splitlines())
    assert (listed["file"], listed["line"], listed["id"]) == (source.name, 1, "a")
    prepared = open_source(str(tmp_path), "train", fractions={})
    assert [sorted(prepared[i].sources) for i in range(2)] == [["title"], ["image", "title"]]
