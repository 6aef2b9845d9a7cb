"""Bad folders: their index, their JSON, their links. See malformed_test.py for the files."""

import json
import os

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.interop import weights
from moemoe_jax.interop.weights import open_weights, read_json
from tests.interop.weight_folders import (
    CONFIG,
    ONE,
    PLACES,
    SHARD_ONE,
    SHARD_TWO,
    TWO,
    entry,
    folder,
    hub_cache,
    raw,
    refusal,
    sharded,
    single,
)

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"

PLAIN = "no plain file name"


def misplaced(place):
    return {"places": {**PLACES, "b": place}}


# What an index and its shards are -> the file at fault, what the message says.
SHARDS = {
    "missing shard": ({"two": None}, TWO, "is missing"),
    "missing first shard": ({"one": None}, ONE, "is missing"),
    "cut shard": ({"two": SHARD_TWO[:-1]}, TWO, "not a whole safetensors file"),
    "shard lacks a tensor": ({"places": {**PLACES, "d": TWO}}, TWO, "lacks tensor 'd'"),
    "index misplaces a tensor": (misplaced(ONE), TWO, "'b'.*not place there"),
    "index lacks a tensor": ({"places": {"a": ONE, "c": TWO}}, TWO, "'b'.*not place there"),
    "tensor in two shards": ({"one": SHARD_TWO}, ONE, "'c'.*not place there"),
    "tensor in both shards": (
        {"two": raw({"a": entry("F32", [2, 3], 0, 24)}, bytes(24)), "places": {"a": ONE, "b": TWO}},
        TWO,
        "'a', and so does model-00001",
    ),
    "shard above the folder": (misplaced("../x.safetensors"), "", PLAIN),
    "shard by an absolute path": (misplaced("/x.safetensors"), "", PLAIN),
    "shard below the folder": (misplaced("sub/x.safetensors"), "", PLAIN),
    "shard with a NUL": (misplaced("\0.safetensors"), "", PLAIN),
    "shard of half a surrogate": (misplaced("\udc80.safetensors"), "", PLAIN),
    "shard with an endless name": (misplaced("b" * 300 + ".safetensors"), "", PLAIN),
    "shard a pickle": (misplaced("pytorch_model.bin"), INDEX, r"no \.safetensors file"),
    "shard a number": (misplaced(2), INDEX, r"no \.safetensors file"),
    "empty weight map": ({"places": {}}, INDEX, "no weight_map"),
    "weight map a list": ({"places": [ONE, TWO]}, INDEX, "no weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARDS)
def test_a_bad_set_of_shards(tmp_path, kind):
    changes, file, match = SHARDS[kind]
    if file == "":
        (tmp_path / "x.safetensors").write_bytes(SHARD_ONE)  # there, and yet not read
    message = refusal(sharded(tmp_path / "model", **changes), match)
    assert message.startswith(str(tmp_path / "model" / file))


JSONS = {
    "not JSON": (b"{", "Expecting property name"),
    "empty": (b"", "Expecting value"),
    "a list": (b"[1]", r"not an object but \[1\]"),
    "a key twice": (b'{"d_model": 1, "d_model": 2}', "'d_model' stands there twice"),
    "NaN": (b'{"dropout": NaN}', "NaN is not a JSON value"),
    "infinite": (b'{"dropout": -Infinity}', "-Infinity is not a JSON value"),
    "overflow": (b'{"dropout": -1e400}', "too large a number"),
    "not UTF-8": (b'{"a": "\xe9"}', "not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "nested too deep": (b'{"a":' * 10**5, "nested too deep"),
    "a pickle": (b"\x80\x04K\x01.", "not UTF-8"),
}


@pytest.mark.parametrize("kind", JSONS)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_bad_json(tmp_path, kind, name):
    content, match = JSONS[kind]
    make = single if name == "config.json" else sharded
    path = make(tmp_path / "model")
    (path / name).write_bytes(content)
    assert refusal(path, match).startswith(f"{path / name} is damaged: ")


def test_a_json_file_has_a_limit(tmp_path):
    path = single(tmp_path / "model")
    with (path / "config.json").open("wb") as file:
        file.truncate(2**40)  # a sparse file: it takes no space
    assert "config.json has more than 67108864 bytes" in refusal(path)


def test_all_shards_together_have_a_limit(tmp_path, monkeypatch):
    path = sharded(tmp_path / "model")
    monkeypatch.setattr(weights, "MAX_BYTES", len(SHARD_ONE) + len(SHARD_TWO))
    assert open_weights(path).names()
    monkeypatch.setattr(weights, "MAX_BYTES", len(SHARD_ONE) + len(SHARD_TWO) - 1)
    assert "bytes of weights, the limit is" in refusal(path)


def test_a_missing_config_is_named(tmp_path):
    assert "config.json is missing" in refusal(single(tmp_path / "model", **{"config.json": None}))


def test_two_saves_in_one_folder_are_ambiguous(tmp_path):
    path = sharded(tmp_path / "model")
    (path / FILE).write_bytes(raw())
    assert f"holds both {FILE} and {INDEX}" in refusal(path)


@pytest.mark.parametrize("name", [FILE, "config.json"])
@pytest.mark.parametrize("target", ["../outside", "absolute", "../model-2/outside"])
def test_a_link_out_of_the_folder(tmp_path, name, target):
    path = single(tmp_path / "model")
    (tmp_path / "model-2").mkdir()  # its path begins with the folder's own
    for place in (tmp_path / "outside", tmp_path / "model-2" / "outside"):
        place.write_bytes((path / name).read_bytes())
    (path / name).unlink()
    (path / name).symlink_to(tmp_path / "outside" if target == "absolute" else target)
    message = refusal(path)
    assert message.startswith(f"{path / name} is a link that leads out of its folder")


def test_a_link_through_a_linked_folder(tmp_path):
    path = single(tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    (path / FILE).rename(tmp_path / "elsewhere" / "w")
    (path / "inner").symlink_to("../elsewhere")
    (path / FILE).symlink_to("inner/w")
    assert f"{path / FILE} is a link that leads out" in refusal(path)


def test_a_link_to_nothing_or_itself(tmp_path):
    path = single(tmp_path / "model")
    for target in ("gone", FILE):
        (path / FILE).unlink()
        (path / FILE).symlink_to(target)
        assert refusal(path, "No such file|Too many").startswith(f"{path / FILE} cannot be read")


def test_a_link_with_control_characters_makes_one_line(tmp_path):
    path = single(tmp_path / "model")
    (path / FILE).unlink()
    (path / FILE).symlink_to("../a\nb\x1b[31m")
    assert r"a\nb\x1b[31m" in refusal(path, "is a link that leads out")


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    path = folder(tmp_path / "model", {})
    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(UserError, match="model cannot be read: Permission denied"):
        open_weights(path)


HUB = {
    "another model's blob": lambda hub: hub / "models--other" / "blobs" / ("a" * 64),
    "no hash": lambda hub: hub / "models--google--t5" / "blobs" / "secret",
    "below blobs": lambda hub: hub / "models--google--t5" / "blobs" / "x" / ("a" * 64),
    "refs": lambda hub: hub / "models--google--t5" / "refs" / ("a" * 40),
    "shared blob in a wrong place": lambda hub: hub / "blobs" / "ab" / ("a" * 64),
    "outside": lambda hub: hub.parent / "blobs" / ("a" * 64),
}


@pytest.mark.parametrize("kind", HUB)
def test_a_hub_cache_whose_link_leads_elsewhere(tmp_path, kind):
    files = {"config.json": json.dumps(CONFIG).encode(), FILE: raw()}
    snapshot = hub_cache(tmp_path / "cache" / "hub", files)
    assert open_weights(snapshot).names()
    target = HUB[kind](tmp_path / "cache" / "hub")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(raw())
    (snapshot / FILE).unlink()
    (snapshot / FILE).symlink_to(target)
    assert f"{snapshot / FILE} is a link that leads out" in refusal(snapshot)


def test_blobs_are_no_excuse_outside_of_a_hub_cache(tmp_path):
    for i, (model, parent) in enumerate((("x", "snapshots"), ("models--x", "other"))):
        blob = tmp_path / f"{i}" / model / "blobs" / ("a" * 64)
        blob.parent.mkdir(parents=True)
        blob.write_bytes(raw())
        path = folder(tmp_path / f"{i}" / model / parent / "1", {})
        (path / FILE).symlink_to(blob)
        assert "is a link that leads out" in refusal(path)


def test_a_folder_or_a_pipe_in_place_of_a_file(tmp_path):
    path = single(tmp_path / "model")
    (path / FILE).unlink()
    (path / FILE).mkdir()
    assert f"{path / FILE} is not a regular file" in refusal(path)
    (path / FILE).rmdir()
    os.mkfifo(path / FILE)  # opening it to read would wait for ever
    assert f"{path / FILE} is not a regular file" in refusal(path)


def test_a_pipe_put_there_after_opening_is_refused(tmp_path):
    path = single(tmp_path / "model")
    opened = open_weights(path)
    (path / FILE).unlink()
    os.mkfifo(path / FILE)
    with pytest.raises(UserError, match="is not a regular file"):
        opened.read("a")


@pytest.mark.parametrize("name", ["", ".", "..", "../config.json", "/etc/passwd", "a\\b", "a\nb"])
def test_only_plain_names_are_read(tmp_path, name):
    with pytest.raises(UserError, match="no plain file name"):
        read_json(single(tmp_path / "model"), name)
