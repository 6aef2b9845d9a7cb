"""Bad folders: each is refused in one line that names the file, and nothing is run or written."""

import json
import math
import random

import pytest
import safetensors
from safetensors.numpy import save

from moemoe_jax.errors import UserError
from moemoe_jax.interop import safetensors_header
from moemoe_jax.interop.weights import open_weights
from tests.interop.weight_folders import (
    DATA,
    HEADER,
    TENSORS,
    entry,
    raw,
    refusal,
    single,
)

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def header(**changes):
    """The good header with entries changed; None takes one out."""
    return {k: v for k, v in {**HEADER, **changes}.items() if v is not None}


def text(old, new, count=-1):
    """The good header's text with a part replaced."""
    good = json.dumps(HEADER)
    assert old in good
    return good.replace(old, new, count).encode()


def tensor_a(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    """The good file but for what its header says of tensor a."""
    return raw(header(a={"dtype": dtype, "shape": shape, "data_offsets": offsets}))


def named(name):
    """A good file but for the name of its one tensor."""
    return raw({name: entry("F32", [1], 0, 4)}, bytes(4))


HEAD_LENGTH = len(json.dumps(HEADER))
# What is in model.safetensors -> what the message says.
FILES = {
    "empty": (b"", "it has only 0 bytes"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "it has only 7 bytes"),
    "length only": (b"\2\0\0\0\0\0\0\0", "header would have 2 bytes, the whole file has 8"),
    "cut in the header": (raw()[:60], "the whole file has 60"),
    "cut in the data": (raw()[:-1], "its tensors need 2"),
    "data too long": (raw() + b"\0", "the whole file has"),
    "header length one short": (raw(length=HEAD_LENGTH - 1), "Expecting"),
    "header length one long": (raw(length=HEAD_LENGTH + 1), "Extra data|not UTF-8"),
    "header length zero": (raw(length=0, header=b""), "not a JSON object"),
    "header length 2^63": (raw(length=2**63), "the limit is 100000000"),
    "header over the limit": (raw(length=100_000_001), "the limit is 100000000"),
    "header a list": (raw(b"[]"), "not a JSON object"),
    "header not JSON": (raw(b'{"a": }'), "Expecting value"),
    "header not UTF-8": (raw(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "header nested too deep": (raw(b'{"a":' + b"[" * 10**6), "nested too deep"),
    "NaN in the header": (raw(text("[0, 24]", "[NaN, 24]")), "NaN is not a JSON value"),
    "Infinity in the header": (raw(text("[0, 24]", "[0, Infinity]")), "Infinity is not"),
    "a number too large": (raw(text("[0, 24]", "[0, 1e999]")), "too large a number"),
    "a number too long": (raw(text("[0, 24]", f"[0, {'9' * 5000}]")), "Exceeds the limit"),
    "a tensor twice": (raw(text('"c": {', '"a": {')), "'a' stands there twice"),
    "a key of an entry twice": (raw(text('"dtype"', '"shape": [], "dtype"', 1)), "'shape' stands"),
    "metadata not texts": (raw(header(__metadata__={"format": 1})), "__metadata__"),
    "metadata a list": (raw(header(__metadata__=["pt"])), "__metadata__"),
    "entry not an object": (raw(header(a=[0, 24])), "tensor 'a' must have dtype"),
    "entry without a shape": (raw(header(a={"dtype": "F32"})), "tensor 'a' must have dtype"),
    "entry with a key too many": (raw(header(a={**HEADER["a"], "x": 1})), "'a' must have dtype"),
    "unknown dtype": (tensor_a("F31", [2, 3]), "tensor 'a' has the dtype 'F31'"),
    "dtype a number": (tensor_a(32, [2, 3]), "tensor 'a' has the dtype 32"),
    "dtype of another size": (tensor_a("F16", [2, 3]), "'a' needs 12 bytes and has 24"),
    "shape of another size": (tensor_a(shape=[2, 2]), "'a' needs 16 bytes and has 24"),
    "negative shape": (tensor_a(shape=[-2, -3]), "'a' has the shape"),
    "fractional shape": (tensor_a(shape=[2.0, 3]), "'a' has the shape"),
    "truth values for a shape": (tensor_a(shape=[True, 6]), "'a' has the shape"),
    "shape not a list": (tensor_a(shape=6), "'a' has the shape 6"),
    "too many dimensions": (tensor_a(shape=[2, 3] + [1] * 70), "'a' has the shape"),
    "shape that overflows": (tensor_a(shape=[2**32, 2**32]), "'a' needs 7"),
    "offsets past the end": (raw(header(b=entry("F16", [102], 28, 232))), "its tensors need"),
    "offsets before the start": (tensor_a(offsets=[-24, 0]), "'a' has the offsets"),
    "offsets backwards": (tensor_a(offsets=[24, 0]), "'a' has the offsets"),
    "three offsets": (tensor_a(offsets=[0, 8, 24]), "'a' has the offsets"),
    "overlapping offsets": (raw(header(c=entry("BF16", [2, 1], 20, 24))), "overlaps tensor"),
    "equal offsets": (raw(header(b=entry("F16", [2], 24, 28))), "overlaps tensor"),
    "a gap": (raw(header(c=None)), "'b' leaves a gap after tensor 'a'"),
    "a gap at the start": (raw(header(a=None)), "'c' leaves a gap after the header"),
    "no tensors": (raw({}, b""), "holds no tensor"),
    "empty name": (named(""), "'' cannot name a tensor"),
    "name of two lines": (named("a\nb"), r"'a\\nb' cannot name"),
    "name of half a surrogate": (named("\ud800"), "cannot name a tensor"),
    "endless name": (named("a" * 10**5), "cannot name a tensor"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page: download the file itself"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file(tmp_path, kind):
    content, match = FILES[kind]
    message = refusal(single(tmp_path / "model", content), match)
    assert message.startswith(str(tmp_path / "model" / FILE))


def test_the_header_that_the_bad_ones_are_made_of_is_good(tmp_path):
    assert open_weights(single(tmp_path / "model", raw(HEADER, DATA))).names() == ("a", "b", "c")


def test_a_header_is_not_read_past_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", HEAD_LENGTH)
    path = single(tmp_path / "model")
    assert open_weights(path).names()
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", HEAD_LENGTH - 1)
    assert f"the limit is {HEAD_LENGTH - 1}" in refusal(path)


def test_what_the_reader_accepts_of_random_damage_the_library_reads_alike(tmp_path):
    """Neither a crash nor a tensor that the format does not hold, over 3000 damaged files."""
    good = save(TENSORS, {"format": "pt"})
    path = single(tmp_path / "model")
    draw = random.Random(0)
    accepted = refused = 0
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.randrange(len(bad))
            kind = draw.randrange(4)
            if kind == 0:
                bad[at] ^= 1 << draw.randrange(8)
            elif kind == 1:
                bad[at] = draw.choice(b'0123456789{}[]",:')
            elif kind == 2:
                del bad[at : at + draw.randrange(1, 9)]
            else:
                bad[at:at] = draw.choice((b"0", b" ", b"9", b"-", b'"a":', bytes(4)))
        (path / FILE).write_bytes(bad)
        try:
            opened = open_weights(path)
        except UserError:
            refused += 1
            continue
        accepted += 1
        theirs = safetensors.deserialize(bytes(bad))
        assert opened.names() == tuple(sorted(name for name, _ in theirs))
        for name, tensor in theirs:
            ours = opened.read(name, any_dtype=True)
            assert ours.tobytes() == bytes(tensor["data"]) and ours.shape == tuple(tensor["shape"])
            assert ours.size == math.prod(tensor["shape"])
    assert accepted > 100 and refused > 1000
