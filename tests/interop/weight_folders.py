"""Weight folders made byte by byte, good and bad."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.interop.weights import open_weights

CONFIG = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], np.float16),
    "c": np.array([[0.5], [3.0]], ml_dtypes.bfloat16),
}


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


# The tensors above: 24 + 4 + 4 bytes.
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": entry("F32", [2, 3], 0, 24),
    "c": entry("BF16", [2, 1], 24, 28),
    "b": entry("F16", [2], 28, 32),
}
DATA = b"".join(TENSORS[name].tobytes() for name in "acb")


def raw(header=None, data=DATA, length=None):
    """The bytes of a safetensors file; `header` as JSON text or as what JSON is made of."""
    header = HEADER if header is None else header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def folder(path, files):
    """A folder of these files: name -> bytes, or what JSON is made of; None leaves one out."""
    path.mkdir(parents=True)
    for name, content in {"config.json": CONFIG, **files}.items():
        if content is not None:
            is_raw = isinstance(content, bytes)
            (path / name).write_bytes(content if is_raw else json.dumps(content).encode())
    return path


def single(path, content=None, **files):
    return folder(path, {"model.safetensors": raw() if content is None else content, **files})


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARD_ONE = raw({"a": entry("F32", [2, 3], 0, 24)}, TENSORS["a"].tobytes())
SHARD_TWO = raw(
    {"c": entry("BF16", [2, 1], 0, 4), "b": entry("F16", [2], 4, 8)},
    TENSORS["c"].tobytes() + TENSORS["b"].tobytes(),
)
PLACES = {"a": ONE, "b": TWO, "c": TWO}


def sharded(path, places=None, **shards):
    """Two shards and their index; `one` and `two` replace the shards, None leaves one out."""
    files = {ONE: shards.get("one", SHARD_ONE), TWO: shards.get("two", SHARD_TWO)}
    index = {"metadata": {"total_size": 32}, "weight_map": PLACES if places is None else places}
    return folder(path, {**files, "model.safetensors.index.json": index})


def hub_cache(cache, files, shared=False):
    """A snapshot as huggingface_hub lays it out: links to blobs, shared among models or not."""
    model = cache / "models--google--t5"
    snapshot = model / "snapshots" / ("7" * 40)
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for i, (name, content) in enumerate(files.items()):
        digest = f"{i:02x}" * 32
        blob = model / "blobs" / digest
        if shared:
            store = cache / "blobs" / digest[:2]
            store.mkdir(parents=True)
            (store / digest).write_bytes(content)
            blob.symlink_to(f"../../blobs/{digest[:2]}/{digest}")
        else:
            blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def refusal(path, match=""):
    """Opens a folder that must be refused; returns the one line. Nothing may have changed.

    Args:
      match: a regular expression that the line must hold somewhere.
    """
    parent = path.parent
    before = sorted(parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert sorted(parent.rglob("*")) == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 1200
    assert re.search(match, message), message
    return message
