"""Good folders: read as the safetensors library reads them, written as it writes them."""

import json
import tracemalloc

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from moemoe_jax.errors import UserError
from moemoe_jax.interop.weights import find_file, open_weights, read_json, write_weights
from tests.interop.weight_folders import CONFIG, TENSORS, hub_cache, raw, sharded, single

MIXED = {
    **TENSORS,
    "double": np.array([[1e300, -1.0]], np.float64),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
    "index": np.array([[3, -1]], np.int64),
    "odd": np.array([7, 8, 9], np.uint8),
    "mask": np.array([True, False, True]),
    'naïve "name"/Ω': np.ones((1, 1, 2), np.float16),
}


def spec(tensors):
    return [(name, value.shape, value.dtype) for name, value in tensors.items()]


def assert_same(weights, tensors):
    assert weights.names() == tuple(sorted(tensors))
    for name, value in tensors.items():
        read = weights.read(name, any_dtype=True)
        assert read.dtype == value.dtype == weights.dtype(name), name
        assert read.shape == value.shape == weights.shape(name), name
        np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize("make", [single, sharded])
def test_folders_made_by_hand_are_read(tmp_path, make):
    weights = open_weights(make(tmp_path / "model"))
    assert_same(weights, TENSORS)
    assert weights.config == CONFIG and weights.folder == tmp_path / "model"
    expected = "model.safetensors" if make is single else "model-00002-of-00002.safetensors"
    assert weights.file("b") == tmp_path / "model" / expected


def test_what_the_library_writes_is_read_as_the_library_reads_it(tmp_path):
    folder = single(tmp_path / "model", b"")
    save_file(MIXED, folder / "model.safetensors")
    weights = open_weights(folder)
    assert_same(weights, MIXED)
    library = load_file(folder / "model.safetensors")
    for name, value in library.items():
        assert value.tobytes() == weights.read(name, any_dtype=True).tobytes(), name


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("form", ["single", "sharded"])
def test_a_hub_cache_is_read_through_its_links(tmp_path, shared, form):
    made = (single if form == "single" else sharded)(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in sorted(made.iterdir())}
    snapshot = hub_cache(tmp_path / "hub", files, shared)
    assert_same(open_weights(snapshot), TENSORS)
    # The folder itself may be reached by a link of the user's.
    (tmp_path / "link").symlink_to(snapshot)
    assert_same(open_weights(tmp_path / "link"), TENSORS)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    folder = single(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "weights-v2")
    (folder / "model.safetensors").symlink_to("weights-v2")
    assert_same(open_weights(folder), TENSORS)


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path):
    folder = single(tmp_path / "model", **{"pytorch_model.bin": b"\x80\x04garbage"})
    assert_same(open_weights(folder), TENSORS)


INDICES = [
    (),
    (slice(None),),
    (slice(1, 3),),
    (slice(1, 3), slice(None), slice(0, 1)),
    (slice(None), slice(2, 4)),
    (slice(0, 5, 2), slice(1, None, 2)),
    (slice(-2, None),),
    (slice(4, 2),),
    (slice(2, 99), slice(None), slice(None)),
]


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_slice_is_that_of_the_whole(tmp_path, index, dtype):
    whole = np.arange(5 * 4 * 2).reshape(5, 4, 2).astype(dtype)
    folder = single(tmp_path / "model", save({"before": np.ones(3, np.float32), "w": whole}))
    part = open_weights(folder).read_slice("w", index)
    np.testing.assert_array_equal(part, whole[index])
    assert part.dtype == dtype and part.flags.c_contiguous


def test_a_slice_that_does_not_fit_is_refused(tmp_path):
    weights = open_weights(single(tmp_path / "model"))
    for index in [(slice(None),) * 3, (slice(None, None, -1),)]:
        with pytest.raises(ValueError, match="does not fit a of shape"):
            weights.read_slice("a", index)


def test_a_sharded_array_is_filled_device_by_device_with_only_its_rows_in_memory(tmp_path):
    rows = np.arange(8 * 2**16, dtype=np.float32).reshape(8, 2**16)  # 2 MiB, 256 KiB a row
    folder = single(tmp_path / "model", save({"w": rows}))
    weights = open_weights(folder)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    most = []

    def fill(index):
        tracemalloc.start()
        part = weights.read_slice("w", index)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return part

    array = jax.make_array_from_callback(rows.shape, sharding, fill)
    np.testing.assert_array_equal(array, rows)
    assert len(most) == 8 and max(most) < 2 * rows[0].nbytes


def test_integers_are_listed_and_read_only_when_asked_for(tmp_path):
    weights = open_weights(single(tmp_path / "model", save({"i": np.arange(3), "w": np.ones(2)})))
    assert weights.names() == ("i", "w") and weights.dtype("i") == np.int64
    with pytest.raises(UserError, match=r"model\.safetensors holds int64 in tensor 'i'"):
        weights.read("i")
    np.testing.assert_array_equal(weights.read("i", any_dtype=True), [0, 1, 2])


def test_an_unknown_tensor_is_refused_with_the_nearest_name(tmp_path):
    weights = open_weights(single(tmp_path / "model", save({"encoder.wi_0": np.ones(2)})))
    for ask in (weights.read, weights.shape, weights.dtype, weights.file):
        with pytest.raises(UserError, match=r"no tensor encoder.wi_1; the nearest .* encoder.wi_0"):
            ask("encoder.wi_1")


@pytest.mark.parametrize("change", ["replaced", "cut"])
def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path, change):
    folder = single(tmp_path / "model")
    weights = open_weights(folder)
    path = folder / "model.safetensors"
    if change == "replaced":
        path.unlink()
        path.write_bytes(raw())
    else:
        path.write_bytes(raw()[:-4])
    with pytest.raises(UserError, match=r"model\.safetensors changed while it was read"):
        weights.read("a")


def test_one_file_has_the_bytes_of_the_library(tmp_path):
    write_weights(tmp_path / "out", CONFIG, spec(MIXED), MIXED.get)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == save(MIXED, {"format": "pt"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert read_json(tmp_path / "out", "config.json") == CONFIG


def test_shards_are_read_back_and_are_the_same_in_any_order(tmp_path):
    floats = {name: value for name, value in MIXED.items() if value.dtype.kind not in "biu"}
    for name, order in (("x", 1), ("y", -1)):
        write_weights(
            tmp_path / name, CONFIG, spec(floats)[::order], floats.get, max_shard_bytes=25
        )
    files = sorted(path.name for path in (tmp_path / "x").iterdir())
    # By name: a has 24 bytes; b, c, double 4 + 4 + 16; empty, naïve, scalar 0 + 4 + 4.
    assert files == ["config.json"] + [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [
        "model.safetensors.index.json"
    ]
    for name in files:
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    assert_same(open_weights(tmp_path / "x"), floats)
    index = json.loads((tmp_path / "x" / files[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in floats.values())
    for shard in files[1:4]:
        assert load_file(tmp_path / "x" / shard).keys() == {
            name for name, place in index["weight_map"].items() if place == shard
        }


def test_a_tensor_above_the_limit_has_a_shard_of_its_own(tmp_path):
    write_weights(tmp_path / "out", CONFIG, spec(TENSORS), TENSORS.get, max_shard_bytes=8)
    weights = open_weights(tmp_path / "out")
    assert_same(weights, TENSORS)
    # a alone has 24 bytes; b and c fill the second with 4 + 4.
    assert [weights.file(name).name[6:11] for name in "abc"] == ["00001", "00002", "00002"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def test_one_tensor_at_a_time_is_in_memory_while_writing(tmp_path):
    size, count = 2**20, 16

    def make(name):
        return np.full(size // 4, int(name), np.float32)

    names = [f"{i:02}" for i in range(count)]
    tracemalloc.start()
    write_weights(tmp_path / "out", CONFIG, [(n, (size // 4,), "float32") for n in names], make)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size
    assert open_weights(tmp_path / "out").read("07")[-1] == 7


def test_what_finish_writes_belongs_to_the_folder(tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder may be there
    write_weights(
        tmp_path / "out", CONFIG, spec(TENSORS), TENSORS.get,
        finish=lambda part: (part / "spiece.model").write_bytes(b"pieces"),
    )  # fmt: skip
    assert find_file(tmp_path / "out", "spiece.model").read_bytes() == b"pieces"
    assert find_file(tmp_path / "out", "tokenizer.json") is None


def fails_at_b(name):
    if name == "b":
        raise OSError(28, "No space left on device")
    return TENSORS[name]


BAD_WRITES = {
    "full disk": (spec(TENSORS), fails_at_b, {}, UserError, "out cannot be written: No space"),
    "other shape": (spec(TENSORS), lambda n: TENSORS[n].T, {}, ValueError, "was announced as"),
    "other dtype": (
        spec(TENSORS), lambda n: TENSORS[n].astype(np.float64), {}, ValueError, "was announced as",
    ),
    "twice": (spec(TENSORS) * 2, TENSORS.get, {}, ValueError, "stands twice"),
    "no name": ([("", (1,), np.float32)], TENSORS.get, {}, ValueError, "cannot name a tensor"),
    "complex": ([("z", (1,), np.complex64)], TENSORS.get, {}, ValueError, "has the dtype complex"),
    "NaN": (spec(TENSORS), TENSORS.get, {"p": float("nan")}, ValueError, "not JSON compliant"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WRITES)
def test_a_failed_write_leaves_nothing(tmp_path, case):
    tensors, read, extra, error, match = BAD_WRITES[case]
    with pytest.raises(error, match=match):
        write_weights(tmp_path / "out", {**CONFIG, **extra}, tensors, read)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name in ("full", "file", "link"):
        with pytest.raises(UserError, match=f"{name} exists already: choose another place"):
            write_weights(tmp_path / name, CONFIG, spec(TENSORS), TENSORS.get)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_transformers_loads_what_is_written(tmp_path, max_shard_bytes):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=20, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
        tie_word_embeddings=False, feed_forward_proj="gated-gelu",
        architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn(20, 16))  # untied, as Flan-T5's
    model.save_pretrained(tmp_path / "theirs")
    theirs = open_weights(tmp_path / "theirs")
    assert "lm_head.weight" in theirs.names()
    tensors = [(name, theirs.shape(name), theirs.dtype(name)) for name in theirs.names()]
    write_weights(
        tmp_path / "ours", theirs.config, tensors, theirs.read, max_shard_bytes=max_shard_bytes
    )
    assert (tmp_path / "ours" / "model.safetensors").exists() == (max_shard_bytes > 4000)
    loaded, info = T5ForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
