"""The programs are lowered from settings alone; the least that a mesh must send, by hand."""

import jax
import pytest

from moemoe_jax.aot import programs
from moemoe_jax.aot.minimum import training_minimum
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.parallel.mesh import make_mesh
from tests.launch.tiny import get_config


def settings(**mesh):
    mapping = get_config()
    mapping.data.products_per_batch = mapping.answer.products_per_batch = 8
    mapping.model.moe_layers.decoder = "odd"
    mapping.model.moe.num_experts = 4
    mapping.mesh.update(mesh)
    return from_config_dict(mapping, programs.vocabulary(mapping))


def planned(config):
    return programs.plan_on(config, make_mesh(config.mesh))


def parameters(run):
    """Elements of all parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(run.abstract[0].params))


def test_copies_sum_their_gradients_and_send_nothing_else():
    run = planned(settings(data=8))
    total = parameters(run)
    least = training_minimum(settings(data=8), run)
    # float32, in a ring of eight: each sends 7/8 for the sum and 7/8 for the result.
    assert least["all-reduce"] == pytest.approx(2 * total * 4 * 7 / 8)
    assert least["all-gather"] == least["reduce-scatter"] == least["all-to-all"] == 0


def test_experts_are_reached_by_four_all_to_alls_a_layer():
    config = settings(data=4, expert=2)
    least = training_minimum(config, planned(config))
    # One product a device: 2 questions of 4 tokens, of which each of the 4 experts may get all 8
    # (few tokens: no tiers); 16 channels of 4 bytes. Half of it goes to the other device.
    assert least["all-to-all"] == 4 * (4 * 8 * 16 * 4) / 2


def test_split_parameters_are_gathered_twice_and_their_gradients_scattered():
    config = settings(data=4, fsdp=2)
    run = planned(config)
    least = training_minimum(config, run)
    split = sum(
        leaf.size
        for leaf in jax.tree.leaves(run.abstract[0].params)
        if "fsdp" in str(leaf.sharding.spec)
    )
    rest = parameters(run) - split
    assert least["reduce-scatter"] == pytest.approx(split * 4 / 2)
    # A part is summed over the four copies of it, what is not split over all eight devices.
    assert least["all-reduce"] == pytest.approx(2 * 4 * (split / 2 * 3 / 4 + rest * 7 / 8))
    # Twice, but for the two tables of tokens, which the backward pass does not look at.
    tables = 2 * 400 * 16
    assert least["all-gather"] == pytest.approx((2 * split - tables) * 4 / 2)


@pytest.mark.slow
def test_both_programs_lower_on_a_mesh():
    config = settings(data=2, fsdp=2, expert=2)
    run = planned(config)
    for lower in (programs.lower_training, programs.lower_answering):
        assert "all_to_all" in lower(config, run).as_text()


def test_without_a_question_encoder_there_is_no_program_of_it():
    mapping = get_config()
    mapping.data.products_per_batch = mapping.answer.products_per_batch = 8
    mapping.model.question_encoder = mapping.model.question_start = False
    mapping.model.fusion.gate, mapping.optimizer.rate_scale = "unit", {}
    mapping.data.context_includes_question = True
    mapping.data.questions_per_product = 1
    config = from_config_dict(mapping, 400)
    run = planned(config)
    assert "while" in programs.lower_answering(config, run).as_text()
    with pytest.raises(UserError, match="leave 'questions' out of --programs"):
        programs.lower_questions(config, run)


def test_a_tokenizer_s_vocabulary_must_be_said():
    mapping = get_config()
    assert programs.vocabulary(mapping) == 400
    mapping.data.tokenizer = "flan-t5-base"
    with pytest.raises(UserError, match=r"add --config.data.vocab_rows=N"):
        programs.vocabulary(mapping)
    mapping.data.vocab_rows = 32_128
    assert programs.vocabulary(mapping) == 32_128
