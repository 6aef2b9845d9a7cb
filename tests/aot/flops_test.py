"""The formula of a step's matrix products against what XLA counts in the step itself."""

import dataclasses

import jax
import pytest

from configs import paper
from moemoe_jax.aot import flops, programs, work
from moemoe_jax.aot.flops_text import mixture_rows
from moemoe_jax.aot.hlo import Module
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.parallel.mesh import make_mesh
from tests.launch import tiny


def lowered(image=True, **changes):
    """The training step of a small model of full width, on one device, and its settings."""
    mapping = paper.get_config("flan")
    text, vision, data = mapping.model.text, mapping.model.vision, mapping.data
    text.num_layers, text.num_decoder_layers, text.dropout = 1, 2, 0.0
    vision.depths, vision.heads, vision.pretrained_window_sizes = (1,), (3,), (0,)
    vision.drop_path = 0.0
    data.image_size, data.text_length, data.products_per_batch, data.vocab_rows = 64, 256, 8, 32_128
    mapping.model.moe.noise = "none"
    mapping.model.moe_layers.decoder = "odd"
    if not image:
        del data.sources.image
    with mapping.unlocked():
        mapping.update_from_flattened_dict(changes)
    config = from_config_dict(mapping, data.vocab_rows)
    run = programs.plan_on(config, make_mesh(config.mesh, jax.devices()[:1]))
    return programs.lower_training(config, run), config


def test_the_formula_is_what_xla_counts_in_an_unrolled_step():
    # Not in turn: of loops that turn as the data want it, XLA counts one turn.
    step, config = lowered(
        **{
            "model.text.scan_layers": False,
            "model.moe.capacity_factor": 1.25,
            "model.moe.dispatch": "index",
        }
    )
    formula = flops.training_flops(config).totals()
    # XLA counts what is no matrix product as well; in an unoptimised program this is about 1 %.
    assert step.cost_analysis()["flops"] == pytest.approx(formula["total"], rel=0.02)
    assert work.total_flops(Module(step.as_text("hlo", debug_info=True))) == pytest.approx(
        formula["total"], 1e-4
    )
    assert formula["again"] == 0


def test_training_experts_alone_costs_what_they_need_and_frozen_parts_have_no_gradients():
    mapping = tiny.get_config("experts")
    mapping.model.text.num_decoder_layers, mapping.model.text.dropout = 4, 0.0
    mapping.data.vocab_rows = 700
    mapping.optimizer.name = "adamw"  # Muon has matrix products of its own
    config = from_config_dict(mapping, 700)
    run = programs.plan_on(config, make_mesh(config.mesh, jax.devices()[:1]))
    step = programs.lower_training(config, run).compile()
    formula = flops.training_flops(config)
    assert work.total_flops(Module(step.as_text())) <= 1.05 * formula.totals()["model"]
    # Forward alone up to the experts of layer 1, and no alignment, which would be a constant.
    frozen = ("question_encoder", "context_encoder", "image_encoder", "fusion")
    assert all(formula.parts[name].backward == 0 for name in frozen)
    decoder = formula.parts["decoder"]
    assert 0 < decoder.backward < 1.2 * decoder.forward
    whole = flops.training_flops(
        dataclasses.replace(config, train=dataclasses.replace(config.train, trainable="all"))
    )
    assert formula.totals()["model"] < 0.5 * whole.totals()["model"]

    # What comes out is the trained parameters, their average and two moments, and numbers.
    state, frozen = run.abstract
    trained = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    assert trained < sum(leaf.size * 4 for leaf in jax.tree.leaves(frozen))
    sizes = step.memory_analysis()
    assert 4 * trained <= sizes.output_size_in_bytes < 4 * trained + 4096
    assert sizes.output_size_in_bytes - sizes.alias_size_in_bytes < 4096


@pytest.mark.parametrize(
    ("trained", "path", "beams"), [("all", "literal", 1), ("experts", "shared", 3)]
)
def test_the_formula_of_answers_is_what_is_lowered(trained, path, beams):
    mapping = tiny.get_config()
    mapping.train.trainable, mapping.optimizer.rate_scale = trained, {}
    mapping.answer.products_per_batch, mapping.answer.beams = 6, beams
    mapping.model.moe_layers.decoder = mapping.model.moe_layers.context_encoder = "all"
    mapping.model.moe.num_experts, mapping.model.fusion.path = 8, path
    mapping.data.questions_per_product, mapping.data.vocab_rows = 15, 700
    config = from_config_dict(mapping, 700)
    run = programs.plan_on(config, make_mesh(config.mesh, jax.devices()[:1]))
    text = programs.lower_answering(config, run).as_text("hlo", debug_info=True)
    formula = flops.answering_flops(config).totals()
    assert work.total_flops(Module(text)) == pytest.approx(formula["total"], rel=1e-4)
    assert formula["model"] == sum(p.forward for p in flops.answering_flops(config).parts.values())
    # The questions come encoded; what does so is a program of its own.
    text = programs.lower_questions(config, run).as_text("hlo", debug_info=True)
    asked = flops.training_flops(flops.answered(config)).parts["question_encoder"]
    assert work.total_flops(Module(text)) == pytest.approx(asked.forward, rel=1e-4)


@pytest.mark.parametrize(
    ("dispatch", "shards", "parts", "rows", "sent"),
    [
        # 512 tokens, top 2 of 8. A mean queue of 128, with 136 slots of its own and 4 x 64 to lend.
        ("index", 1, 1, 8 * 136 + 4 * 64, 0),
        ("index", 4, 1, 4 * 8 * 40, 0),  # 32 on a device: 1.25 times that
        ("index", 4, 2, 4 * 8 * 40, 4 * 8 * 40),
        ("ragged", 1, 1, 1024, 0),
        ("in_turn", 1, 1, 8 * 136, 0),  # the size that holds 128
        ("in_turn", 4, 1, 4 * 8 * 32, 0),
        # Blocks of 64: 1024 / 64 and half of one for each expert but one.
        ("grouped", 1, 1, 64 * (16 + 7 - 4), 0),
        ("grouped", 4, 1, 4 * 16 * (16 + 7 - 4), 0),
        # A device sends 1.25 x 256 / 2 to each of two. What they send is divided among 4 experts.
        ("grouped", 4, 2, 4 * 32 * (10 + 3 - 2), 4 * 2 * 160),
    ],
)
def test_rows_of_a_mixture_by_hand(dispatch, shards, parts, rows, sent):
    config = MoEConfig(num_experts=8, top_k=2, dispatch=dispatch)
    assert mixture_rows(config, 512, shards, parts) == (rows, sent)


@pytest.mark.slow
def test_the_formula_knows_scans_recomputation_and_frozen_parts():
    step, config = lowered(
        image=False,
        **{
            "model.text.scan_layers": True,
            "model.text.remat": "full",
            "train.trainable": "experts",
        },
    )
    formula = flops.training_flops(config)
    assert work.total_flops(Module(step.as_text("hlo", debug_info=True))) == pytest.approx(
        formula.totals()["total"], rel=1e-3
    )
    assert formula.parts["context_encoder"].backward == 0
    assert formula.parts["decoder"].backward > 0
