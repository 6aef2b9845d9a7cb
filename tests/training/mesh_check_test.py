from jax.sharding import AbstractMesh
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.parallel.mesh import AXES
from moemoe_jax.training.loop import train
from moemoe_jax.training.mesh_check import check_mesh
from tests.launch import tiny

ONE = {"question_encoder": "none", "context_encoder": "none", "decoder": "none"}


def mixed(stacks, dispatch="auto", products=64):
    """The tiny config with a mixture in every layer of these stacks."""
    config = tiny.get_config("dense")
    config.data.products_per_batch = products
    config.model.moe_layers.update(ONE | dict.fromkeys(stacks, "all"))
    config.model.moe.dispatch = dispatch
    return config


def checked(config, data=1, fsdp=1, expert=1, tensor=1):
    check_mesh(from_config_dict(config), AbstractMesh((data, fsdp, expert, tensor), AXES))


@pytest.mark.parametrize("stack", ONE)
def test_a_mixture_in_any_stack_is_looked_at(stack):
    with pytest.raises(UserError, match=r"mesh\.expert 4 does not divide the 2 experts"):
        checked(mixed([stack]), expert=4)
    with pytest.raises(UserError, match=r"dispatch is grouped, .* but mesh\.tensor is 2; set"):
        checked(mixed([stack], "grouped"), tensor=2)
    with pytest.raises(UserError, match=r"dispatch is ragged, .* but mesh\.expert is 2; set"):
        checked(mixed([stack], "ragged"), expert=2)


def test_what_fits_is_not_refused():
    checked(mixed(["decoder"], "grouped"), data=4, fsdp=2, expert=2)
    checked(mixed(["decoder"], "ragged"), data=4, tensor=2)
    checked(mixed([], "grouped"), expert=4, tensor=2)  # there is nothing to dispatch
    pictures = mixed(["context_encoder"], "grouped")
    del pictures.data.sources.text
    checked(pictures, tensor=2)  # nor in a stack that is left out


def test_a_batch_is_split_over_all_axes_but_tensor():
    checked(mixed([], products=24), data=2, fsdp=2, expert=2, tensor=2)
    with pytest.raises(UserError, match=r"among the 16 devices .* give a multiple of 16"):
        checked(mixed([], products=24), data=4, fsdp=2, expert=2)


def test_a_training_is_refused_before_its_data_are_looked_for(tmp_path):
    config = mixed(["decoder"], "grouped")
    config.data.source = "jsonl:there/is/none"
    config.mesh.tensor = 2
    with pytest.raises(UserError, match=r"model\.moe\.dispatch is grouped"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
