"""Everything a catalogue gets wrong, in one file: the job goes on, and nothing vanishes."""

import io
import json
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import corpus
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import open_source
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.data.train_batches import train_batches
from moemoe_jax.errors import UserError

LONG_QUESTION = "which " * 60


def jpeg():
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def bomb():
    """A PNG of a kilobyte that claims 3.6 billion pixels."""

    def chunk(kind, body):
        code = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + code

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + size + data + chunk(b"IEND", b"")


def product(id, image="good.jpg", title="red shirt", **changes):
    sources = {"title": title, "image": image}
    return {"id": id, "sources": sources, "attributes": {"color": "red"}, **changes}


@pytest.fixture
def catalogue(tmp_path):
    """Line by line; lines 2, 4 and 8 are no records, 5 to 7 have a bad image, 10 has nothing."""
    images = {"good.jpg": jpeg(), "cut.jpg": jpeg()[:-300], "text.jpg": b"hello"}
    images["bomb.png"] = bomb()
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
    without_id = product("x")
    del without_id["id"]
    lines = [
        json.dumps(product("a")),
        json.dumps(without_id),
        json.dumps(product("b", questions=[{"question": LONG_QUESTION, "answer": "yes"}])),
        json.dumps(product("a", title="again")),
        json.dumps(product("c", image="cut.jpg")),
        json.dumps(product("d", image="text.jpg")),
        json.dumps(product("e", image="bomb.png")),
        json.dumps(product("f"))[:40],
        json.dumps(product("g", title="")),
        json.dumps(product("h", title="", image="gone.jpg")),
    ]
    path = tmp_path / "products.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def batches(path, rejects, **changes):
    config = DataConfig(
        text_length=32, answer_length=8, questions_per_product=2, products_per_batch=7,
        image_size=16, threads=0, **changes,
    )  # fmt: skip
    source = open_source(str(path), rejects=rejects)
    tokenizer = Tokenizer.train(corpus(source, config), 400)
    return train_batches(source, tokenizer, config, seed=0, rejects=rejects)


def test_what_is_bad_is_listed_with_its_place_and_the_rest_is_trained_on(catalogue, tmp_path):
    rejects = Rejects(tmp_path / "rejects.jsonl", max_fraction=1.0)
    train = batches(catalogue, rejects)
    batch = next(train)

    listed = [json.loads(line) for line in rejects.path.read_text().splitlines()]
    lines = {e["line"]: e["reason"] for e in listed if e["file"] == str(catalogue)}
    assert lines.pop(2) == "no id" and lines.pop(4) == "duplicate id"
    assert lines.pop(8).startswith("not JSON")
    images = {e["file"].rpartition("/")[2]: e["reason"] for e in listed if e["line"] == 0}
    assert images["cut.jpg"].startswith("unreadable image")
    assert images["text.jpg"].startswith("not an image")
    assert images["bomb.png"].startswith("image too large")
    assert "3600000000 pixels" in images["bomb.png"]
    assert images["gone.jpg"].startswith("image not found")

    # a, b, c, d, e and g: c, d and e have only their text left, g only its image.
    has_image, has_text = batch["source_valid"]["image"], batch["source_valid"]["text"]
    rows = batch["question_valid"].any(1)
    assert train.products == 7 and rows.sum() == 6
    assert (has_image & has_text).sum() == 2
    assert (has_text & ~has_image).sum() == 3 and (has_image & ~has_text).sum() == 1
    # The long question is cut to the limit, ends in </s> and is counted.
    assert (batch["question_ids"][:, -1] == 1).sum() == 1
    assert train.notes.counts() == {"question truncated (data.text_length=32)": 1}


def test_the_same_stops_the_job_where_the_limit_is_lower(catalogue, tmp_path):
    rejects = Rejects(tmp_path / "rejects.jsonl", max_fraction=0.2)
    with pytest.raises(UserError, match=r"3 of 10 records.*data\.max_reject_fraction"):
        batches(catalogue, rejects)
    with pytest.raises(UserError, match="were rejected"):
        # The lines alone pass, the images do not.
        next(batches(catalogue, Rejects(None, max_fraction=0.35)))
