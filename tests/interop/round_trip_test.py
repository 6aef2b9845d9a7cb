"""In and out again: `from_pretrained` reads an export, and finds the bits that came in."""

import dataclasses
import logging

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from moemoe_jax.experiment import read_settings
from moemoe_jax.inference.loading import load
from moemoe_jax.interop.exporting import export
from moemoe_jax.interop.importing import import_model, import_parts
from moemoe_jax.interop.slots import slots
from moemoe_jax.workdir import WorkDir
from tests.interop import folders


def quiet(line):
    del line


@pytest.fixture(autouse=True)
def one_device(monkeypatch, request):
    """As on a laptop: writing what eight devices hold copies of compiles a program an array."""
    transformers.logging.set_verbosity_error()
    if "eight_devices" not in request.fixturenames:
        first = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda: first)


@pytest.fixture
def eight_devices():
    """For a test that is to see all of them."""


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A folder of a SwinV2 with a head, which has a prefix, and the PyTorch model."""
    folder = tmp_path_factory.mktemp("vision")
    return folder, folders.save_vision(folder, "Swinv2ForImageClassification")


def arrays(workdir):
    """The parameters of a work directory by slot."""
    model = load(WorkDir.open(workdir)).model
    state = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}
    return {name: state[slot.leaf][slot.index] for name, slot in slots(model).items()}


def pretrained(folder, kind):
    """What transformers makes of a folder: its tensors; nothing may be missing or unexpected."""
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert {key: list(found) for key, found in info.items() if found} == {}
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def equal(found, expected, renamed=""):
    assert found.keys() <= expected.keys() if renamed else found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


CASES = {
    "t5": ("T5ForConditionalGeneration", "T5EncoderModel"),
    "flan": ("T5ForConditionalGeneration", "T5EncoderModel"),
    "mt5": ("T5ForConditionalGeneration", "T5EncoderModel"),
    "mt5 with a tied head": ("T5ForConditionalGeneration", "T5EncoderModel"),
    "umt5": ("UMT5ForConditionalGeneration", "UMT5EncoderModel"),
    "switch": ("SwitchTransformersForConditionalGeneration", "SwitchTransformersEncoderModel"),
}


# The others have the names of one of these.
DIFFERENT = ("t5", "flan", "umt5", "switch")


def texts_alone(phase="dense"):
    """The tiny config without an image: its encoder is compiled by the tests that are about it."""
    config = folders.config(phase)
    config.init.work_dir = ""
    del config.data.sources.image
    return config


def told(folder, kind, caplog):
    """What transformers warns of as it loads a folder."""
    logger = logging.getLogger("transformers")
    caplog.clear()
    transformers.logging.set_verbosity_warning()
    logger.addHandler(caplog.handler)
    getattr(transformers, kind).from_pretrained(folder)
    logger.removeHandler(caplog.handler)
    transformers.logging.set_verbosity_error()
    return set(caplog.messages)


@pytest.mark.parametrize("name", CASES)
def test_import_export_from_pretrained_gives_the_same_bits(name, tmp_path, caplog):
    theirs = folders.save_text(name, tmp_path / "text")
    config = texts_alone()
    config.model.text.scan_layers = name in ("flan", "switch")
    lines = []
    import_parts(config, tmp_path / "text", "", tmp_path / "w", lines.append)
    assert "gate/score/kernel" in "\n".join(lines)
    export(tmp_path / "w", tmp_path / "out", say=quiet)

    whole, encoder = CASES[name]
    expected = {k: w.detach().numpy() for k, w in theirs.named_parameters()}
    found = pretrained(tmp_path / "out" / "text", whole)
    if name == "mt5 with a tied head":
        assert "lm_head.weight" not in found  # written, and tied again as it is equal
    equal(found, expected)
    own = told(tmp_path / "text", type(theirs).__name__, caplog)
    assert told(tmp_path / "out" / "text", whole, caplog) <= own  # of untied heads it always warns
    alone = pretrained(tmp_path / "out" / "question_encoder", encoder)
    assert any(key.startswith("encoder.block.1.") for key in alone)
    equal(alone, expected, renamed="a part")
    if name in DIFFERENT:
        comes_back(tmp_path)


def comes_back(place):
    """The whole model is that which was exported."""
    whole = place / "out" / "moemoe"
    import_model(read_settings(whole / "config.json"), whole, place / "back", quiet)
    equal(arrays(place / "back"), arrays(place / "w"))


def test_images_come_back_and_settings_follow_from_the_files(tmp_path, vision):
    folders.save_text("switch", tmp_path / "text")
    lines = []
    import_parts(folders.config(), tmp_path / "text", vision[0], tmp_path / "w", lines.append)
    assert "classifier.weight" in "\n".join(lines)
    export(tmp_path / "w", tmp_path / "out", say=quiet)
    images = pretrained(tmp_path / "out" / "vision", "Swinv2Model")
    equal(images, {k: w.detach().numpy() for k, w in vision[1].swinv2.named_parameters()})
    comes_back(tmp_path)
    loaded = load(WorkDir.open(tmp_path / "w"))
    data, model = loaded.config.data, loaded.config.model
    assert (data.image_mean, data.image_std) == ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    assert (data.image_size, model.vision.window_size, model.vision.heads) == (16, 2, (2,))
    assert (model.text.d_model, model.text.vocab_size) == (16, folders.ROWS)
    assert loaded.tokenizer.vocab_size < folders.ROWS
    assert (model.moe.num_experts, model.moe.top_k, model.moe.gate) == (3, 1, "softmax_topk")
    assert dataclasses.astuple(model.moe_layers)[:3] == ("1", "1", "1")
    assert loaded.step == 0


def test_a_mixture_is_made_of_copies_of_the_dense_block_and_noise_moves_each(tmp_path):
    theirs = folders.save_text("flan", tmp_path / "text")
    lines = []

    def imported(name, noise):
        config = texts_alone("experts")
        config.init.expert_noise = noise
        import_parts(config, tmp_path / "text", "", tmp_path / name, lines.append)
        return arrays(tmp_path / name)

    exact, noisy = imported("moe", 0.0), imported("noisy", 0.1)
    kernel = "decoder/stack/1/feed_forward/wi_0/kernel"
    dense = theirs.decoder.block[1].layer[2].DenseReluDense.wi_0.weight.detach().numpy().T
    for expert in range(2):
        np.testing.assert_array_equal(exact[f"{kernel}/{expert}"], dense)
        moved = noisy[f"{kernel}/{expert}"] - dense
        # 16 x 24 draws: their standard deviation is within 15 % of 0.1 times the block's.
        assert abs(moved.std() / (0.1 * dense.std()) - 1) < 0.15
    assert not np.array_equal(noisy[f"{kernel}/0"], noisy[f"{kernel}/1"])
    assert "decoder/stack/1/feed_forward/router/kernel" in exact
    rows = [line.split() for line in "\n".join(lines).splitlines()]
    target = "decoder/stack/{i}/feed_forward/wi_0/kernel"
    assert ["to", "each", "expert"] in [row[2:5] for row in rows if row[1:2] == [target]]
    assert ["-", "decoder/stack/*/feed_forward/router/kernel", "new", "1"] in rows


@pytest.mark.usefixtures("eight_devices")
def test_arrays_are_filled_where_their_shards_are(tmp_path, monkeypatch):
    folders.save_text("switch", tmp_path / "text")
    config = texts_alone()
    config.model.text.scan_layers = True
    config.mesh.data, config.mesh.fsdp, config.mesh.expert = 1, 8, 1
    import_parts(config, tmp_path / "text", "", tmp_path / "sharded", quiet)
    sharded = arrays(tmp_path / "sharded")
    table = load(WorkDir.open(tmp_path / "sharded")).model.decoder_embedding.table[...]
    assert table.addressable_shards[0].data.shape == (folders.ROWS, 2)  # 16 channels on 8 devices
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    import_parts(texts_alone(), tmp_path / "text", "", tmp_path / "whole", quiet)
    equal(sharded, arrays(tmp_path / "whole"))


def test_a_model_that_was_trained_goes_out_as_two_text_models(tmp_path):
    theirs = folders.save_text("flan", tmp_path / "text")
    config = texts_alone()
    config.model.share_embeddings = "none"
    import_parts(config, tmp_path / "text", "", tmp_path / "w", quiet)
    diverge(tmp_path / "w")
    export(tmp_path / "w", tmp_path / "out", say=quiet)
    text = pretrained(tmp_path / "out" / "text", "T5ForConditionalGeneration")
    question = pretrained(tmp_path / "out" / "question_encoder", "T5EncoderModel")
    ours = arrays(tmp_path / "w")
    np.testing.assert_array_equal(text["shared.weight"], ours["decoder_embedding/table"])
    np.testing.assert_array_equal(
        text["encoder.embed_tokens.weight"], ours["context_embedding/table"]
    )
    np.testing.assert_array_equal(question["shared.weight"], ours["question_embedding/table"])
    norm = "encoder.final_layer_norm.weight"
    assert not np.array_equal(text[norm], question[norm])
    original = dict(theirs.named_parameters())[norm].detach().numpy()
    assert not np.array_equal(text[norm], original)


def diverge(workdir):
    """Moves every parameter of a work directory, each in its own way, as training does."""
    from moemoe_jax.training.checkpoints import Checkpoints

    place = WorkDir.open(workdir)
    loaded = load(place)
    rng = np.random.default_rng(0)
    moved = [
        jax.tree.map(lambda a: a + jnp.asarray(rng.normal(size=a.shape), a.dtype), state)
        for state in loaded.params
    ]
    with Checkpoints(place.checkpoints) as checkpoints:
        checkpoints.save(1, {"ema": moved[0], "frozen": moved[1]})


def test_mixtures_without_a_class_are_said_and_are_in_the_whole(tmp_path):
    folders.save_text("flan", tmp_path / "text")
    import_parts(texts_alone("experts"), tmp_path / "text", "", tmp_path / "w", quiet)
    lines = []
    export(tmp_path / "w", tmp_path / "out", say=lines.append)
    assert any("no text/" in line and "gated-gelu" in line for line in lines)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"question_encoder", "moemoe"}
    comes_back(tmp_path)
