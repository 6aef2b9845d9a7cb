"""Every config builds at full size, says what its table says, and takes a step at toy size."""

import copy
import dataclasses
import importlib
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from configs import ablations, fashion, moemoe_base, moemoe_scale, paper, table4, table5
from moemoe_jax.data.examples import corpus
from moemoe_jax.data.formats.fashion import ATTRIBUTES
from moemoe_jax.data.sources import open_source
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.models.build import abstract_model
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.training import setup
from moemoe_jax.training.step import init_state, make_train_step
from moemoe_jax.training.trainable import count_parameters
from moemoe_jax.workdir import WorkDir

FOLDER = pathlib.Path(paper.__file__).parent
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
# Files that do not list their arguments; one that is in neither place fails the tests.
UNLISTED = {"base": (None,)}


def module(file):
    return importlib.import_module(f"configs.{file}")


def variants(file):
    return getattr(module(file), "VARIANTS", None) or UNLISTED[file]


def get(file, argument):
    return module(file).get_config(*([] if argument is None else [argument]))


EVERY = [(file, argument) for file in FILES for argument in variants(file)]


# --- one step at toy size -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Eight products in the layout of the Fashion Product Images folder."""
    folder = tmp_path_factory.mktemp("fashion")
    (folder / "images").mkdir()
    lines = [
        "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,"
        "productDisplayName"
    ]
    for number in range(8):
        gender, colour = ("Men", "Women")[number % 2], ("Red", "Blue", "Green")[number % 3]
        Image.new("RGB", (20, 20), colour.lower()).save(folder / "images" / f"{number}.jpg")
        lines.append(
            f"{number},{gender},Apparel,Topwear,Shirts,{colour},Fall,2011,Casual,"
            f"Turtle {gender} {colour} Check Shirt"
        )
    (folder / "styles.csv").write_text("\n".join(lines) + "\n")
    return f"fashion:{folder}"


@pytest.fixture(scope="module")
def tokenizer(products, tmp_path_factory):
    """A folder with a tokenizer for both sources."""
    folder = tmp_path_factory.mktemp("tokenizer")
    data = from_config_dict(get("base", None)).data
    texts = [*corpus(open_source(products), data)]
    texts += corpus(open_source("catalogue:products=8,image_size=16"), data)
    Tokenizer.train(texts, 400).save(folder)
    return str(folder)


def shrink(config, source, tokenizer):
    """The same choices in a toy: two layers where there are more, one block on the image."""
    text, vision, data = config.model.text, config.model.vision, config.data
    text.d_model, text.d_kv, text.num_heads, text.d_ff = 16, 8, 2, 16
    text.dropout = vision.drop_path = 0.0  # half of what there is to compile
    text.num_layers = min(text.num_layers, 2)
    text.num_decoder_layers = min(text.num_decoder_layers, 2)
    # 16 px in patches of 8: 4 tokens of 16 channels, tiled to a text of 8.
    vision.patch_size, vision.embed_dim, vision.depths, vision.heads = 8, 16, (1,), (2,)
    vision.pretrained_window_sizes = (0,)
    data.source = source if data.source.startswith("fashion") else "catalogue:products=8"
    data.image_size, data.text_length, data.answer_length = 16, 8, 4
    data.question_length = min(data.question_length, 4)
    data.tokenizer = tokenizer
    data.products_per_batch, data.threads, data.val_fraction = 4, 0, 0.0
    data.questions_per_product = min(data.questions_per_product, 2)
    data.distinct_questions = 8
    config.optimizer.warmup_steps = 0
    config.init.work_dir = ""
    config.mesh.fsdp = config.mesh.expert = 1
    # What only large sizes ask for: equal toys compile once.
    text.dtype = vision.dtype = "float32"
    text.remat, vision.remat = "none", False
    config.model.moe.num_experts = min(config.model.moe.num_experts, 4)
    return config


@pytest.fixture(scope="module")
def compiled():
    """Compiled steps by what they depend on: equal ones compile once."""
    return {}


@pytest.fixture
def one_device(monkeypatch):
    def mesh_of_one(config):
        return make_mesh(config, jax.devices()[:1])

    monkeypatch.setattr(setup, "make_mesh", mesh_of_one)


def compile_step(config, run):
    """A step that takes the loss's weights as arguments, so that they are nothing to compile."""

    def step(state, frozen, batch, align_weight, aux_weight):
        loss = copy.copy(config.loss)
        for name, weight in (("align_weight", align_weight), ("aux_weight", aux_weight)):
            object.__setattr__(loss, name, weight)  # traced, it has no sign to be refused for
        one = make_train_step(run.graph, run.optimizer, run.schedule, loss, mesh=run.mesh, seed=0)
        return one(state, frozen, batch)

    return jax.jit(step)


def random_values(abstract):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.0, 0.1, x.shape).astype(x.dtype), abstract)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(("file", "argument"), EVERY)
def test_every_config_takes_a_step(file, argument, products, tokenizer, compiled, tmp_path):
    mapping = shrink(get(file, argument), products, tokenizer)
    data = setup.open_data(mapping, WorkDir(tmp_path), resuming=False, say=print)
    config = from_config_dict(mapping, data.tokenizer.vocab_size)
    run = setup.plan(config, data.train.steps_per_epoch)
    batch = next(data.train)

    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
    key = (config.model, config.optimizer, config.train.trainable, shapes)
    step = compiled.setdefault(key, compile_step(config, run))
    abstract, frozen = run.abstract
    params = random_values(abstract.params)
    state = init_state(params, run.optimizer, ema=abstract.ema is not None)
    weights = config.loss.align_weight, config.loss.aux_weight
    after, metrics = step(state, random_values(frozen), batch, *weights)

    assert int(after.skipped) == 0 and int(after.step) == 1
    assert np.isfinite(metrics["loss/total"])
    changed = jax.tree.map(lambda old, new: (old != new).any(), params, after.params)
    assert np.mean(jax.tree.leaves(changed)) > 0.5


# --- what the tables say, at full size ------------------------------------------------------------


def test_the_paper_has_the_sizes_of_the_paper():
    # T5-base: 223 M, an encoder with its own embedding again 110 M, SwinV2-tiny 28 M; Flan: 248 M.
    for size, millions in (("t5", 360), ("flan", 385)):
        model = abstract_model(from_config_dict(paper.get_config(size)).model)
        counts = count_parameters(model)
        assert counts["experts"] == counts["routers"] == 0
        assert round(counts["backbone"] / 1e6) == pytest.approx(millions, abs=2)


def test_the_paper_is_read_to_the_letter():
    config = from_config_dict(paper.get_config())
    assert config.model.vision.tokens == 64 and config.data.text_length == 256
    assert config.model.vision.width == config.model.text.d_model == 768
    assert (config.model.fusion.gate, config.model.fusion.gate_norm) == ("token", "none")
    assert config.data.context_includes_question and not config.model.question_start
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adam", 1e-3)
    assert (config.optimizer.step_epochs, config.optimizer.step_factor) == ((6, 9), 0.2)
    assert config.train.epochs == 10 and config.data.products_per_batch == 32
    assert (config.loss.align_weight, config.loss.aux_weight) == (1.0, 0.1)


def test_the_base_model_is_the_paper_s_with_eight_experts():
    config = from_config_dict(moemoe_base.get_config(), 32_000)
    assert config.model.moe.num_experts == 8
    assert config.optimizer == from_config_dict(paper.get_config()).optimizer
    assert config.model.text.vocab_size == 32_128
    # `qga` has as many rows as its tokenizer has pieces, and the experts start from it.
    experts = from_config_dict(moemoe_base.get_config("experts"), 32_100)
    assert (experts.train.trainable, experts.init.work_dir) == ("experts", "runs/qga")
    assert experts.model.text == dataclasses.replace(
        from_config_dict(table4.get_config("qga"), 32_100).model.text, dtype="bfloat16"
    )


def test_the_scale_model_spreads_64_experts():
    config = from_config_dict(moemoe_scale.get_config(), 32_000)
    assert config.mesh.resolve(256) == (2, 8, 16, 1) and 64 % config.mesh.expert == 0
    assert config.model.vision.width == config.model.text.d_model
    for chip, remat in (("v5e", "full"), ("v5p", "dots")):
        assert from_config_dict(moemoe_scale.get_config(chip)).model.text.remat == remat


@pytest.mark.slow
def test_the_large_models_have_the_sizes_that_their_files_say():
    for file, experts, billions in (
        (moemoe_base, 6 * 8 * 3 * 768 * 2048, 0.6),
        (moemoe_scale, 12 * 64 * 3 * 1024 * 2816, 7.8),
    ):
        config = from_config_dict(file.get_config(), 32_000)
        counts = count_parameters(abstract_model(config.model))
        assert counts["experts"] == experts
        assert round(sum(counts.values()) / 1e9, 1) == billions


ALL, NONE = tuple(range(12)), ()
ODD, EVEN = (1, 3, 5, 7, 9, 11), (0, 2, 4, 6, 8, 10)


@pytest.mark.parametrize(
    ("row", "encoders", "decoder", "trainable"),
    [
        ("qga", NONE, NONE, "all"),
        ("enc_dec_full", ALL, ALL, "all"),
        ("enc_dec_odd", ODD, ODD, "experts"),
        ("enc_dec_even", EVEN, EVEN, "experts"),
        ("encoder_full", ALL, NONE, "all"),
        ("decoder_full", NONE, ALL, "all"),
        ("decoder_last", NONE, (11,), "all"),
        ("decoder_last2", NONE, (10, 11), "all"),
        ("decoder_even", NONE, EVEN, "experts"),
        ("decoder_odd_frozen", NONE, ODD, "backbone"),
        ("moemoe", NONE, ODD, "experts"),
    ],
)
def test_table_4(row, encoders, decoder, trainable):
    config = from_config_dict(table4.get_config(row))
    layers = config.model.moe_layers
    assert layers.of("question_encoder", 12) == layers.of("context_encoder", 12) == encoders
    assert layers.of("decoder", 12) == decoder
    assert config.train.trainable == trainable
    # A part is trained of a model whose rest was trained before.
    assert config.init.work_dir == ("" if trainable == "all" else "runs/qga")
    assert (config.model.moe.num_experts, config.model.moe.top_k) == (4, 2)


def test_table_4_says_that_mxt_is_another_model():
    with pytest.raises(ValueError, match=r"mxt is another model; use qga, enc_dec_full"):
        table4.get_config("mxt")


@pytest.mark.parametrize(
    ("argument", "encoders", "weight"),
    [
        ("decoder_0.01", "none", 0.01),
        ("decoder_0.1", "none", 0.1),
        ("decoder_0.5", "none", 0.5),
        ("enc_dec_0.01", "odd", 0.01),
        ("enc_dec_0.1", "odd", 0.1),
    ],
)
def test_table_5(argument, encoders, weight):
    config = from_config_dict(table5.get_config(argument))
    layers = config.model.moe_layers
    assert (layers.question_encoder, layers.context_encoder) == (encoders, encoders)
    assert (layers.decoder, config.train.trainable) == ("odd", "experts")
    assert config.loss.aux_weight == weight


def test_ablations_take_one_thing_away():
    whole = from_config_dict(table4.get_config("qga"))
    woqg, woal, s_enc = (from_config_dict(ablations.get_config(a)) for a in ablations.VARIANTS)
    unit = dataclasses.replace(whole.model.fusion, gate="unit")
    assert woqg == dataclasses.replace(whole, model=dataclasses.replace(whole.model, fusion=unit))
    assert woal == dataclasses.replace(
        whole, loss=dataclasses.replace(whole.loss, align_weight=0.0)
    )
    assert s_enc.data == whole.data and s_enc.data.context_includes_question
    assert s_enc.model == dataclasses.replace(woqg.model, question_encoder=False)


def test_fashion_asks_what_the_folder_tells():
    config = from_config_dict(fashion.get_config("full"))
    assert config.data.questions_per_product == len(ATTRIBUTES) == 6
    assert config.data.hide_answer_fraction == 0.0
    hidden = from_config_dict(fashion.get_config("hidden"))
    augment = dataclasses.replace(config.data.augment, hide_probability=0.3)
    data = dataclasses.replace(config.data, hide_answer_fraction=0.5, augment=augment)
    text = dataclasses.replace(config.model.text, dropout=hidden.model.text.dropout)
    model = dataclasses.replace(config.model, text=text)
    assert config.model.text.dropout < text.dropout
    same = dataclasses.replace(config, data=data, model=model)
    assert dataclasses.replace(hidden, train=config.train) == same
    for change, names in (("image_only", ["image"]), ("text_only", ["text"])):
        changed = from_config_dict(fashion.get_config(f"hidden,{change}"))
        assert [source.name for source in changed.model.sources] == names
    woqg = from_config_dict(fashion.get_config("hidden,woqg"))
    assert woqg.model.fusion.gate == "unit"
    both = from_config_dict(fashion.get_config("hidden,woqg,moe"))
    assert (both.model.fusion.gate, both.train.trainable) == ("unit", "experts")


@pytest.mark.parametrize("file", [file for file in FILES if file != "base"])
@pytest.mark.parametrize("argument", ["nonsense", "nonsense,small"])
def test_an_unknown_argument_is_told_in_a_line_with_the_choices(file, argument):
    with pytest.raises(ValueError, match="nonsense") as caught:
        get(file, argument)
    assert "\n" not in str(caught.value)
    assert all(choice.split(",")[0] in str(caught.value) for choice in variants(file))


@pytest.mark.parametrize("file", ["table4", "table5", "ablations"])
def test_the_tables_come_in_the_sizes_of_the_paper(file):
    argument = variants(file)[0]
    small = from_config_dict(get(file, f"{argument},small"))
    assert small.model.text.num_decoder_layers == 4
    assert get(file, f"{argument},flan") == get(file, argument)
    with pytest.raises(ValueError, match=r"'huge'; use one of flan, t5, small"):
        get(file, f"{argument},huge")
