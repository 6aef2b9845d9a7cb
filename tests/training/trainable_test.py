import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.nn.params import ExpertParam, RouterParam, param
from moemoe_jax.training import trainable

ones = nnx.initializers.ones


class Toy(nnx.Module):
    def __init__(self, rngs, mixture=True):
        self.kernel = param(rngs, (4, 4), ones, ("embed", "mlp"))
        if mixture:
            self.experts = param(rngs, (2, 4), ones, ("expert", "mlp"), kind=ExpertParam)
            self.router = param(rngs, (4, 2), ones, ("embed", None), kind=RouterParam)


def names(state):
    return set(state.keys())


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("all", {"kernel", "experts", "router"}),
        ("experts", {"experts", "router"}),
        ("backbone", {"kernel"}),
    ],
)
def test_every_leaf_is_trained_or_frozen_and_the_model_comes_back(name, trained):
    model = Toy(nnx.Rngs(0))
    graph, moving, frozen = trainable.split_trainable(model, name)
    assert names(moving) == trained
    assert names(moving) | names(frozen) == {"kernel", "experts", "router"}
    assert not names(moving) & names(frozen)
    chex.assert_trees_all_equal(nnx.state(nnx.merge(graph, moving, frozen)), nnx.state(model))


def test_only_the_trained_part_has_a_gradient():
    graph, moving, frozen = trainable.split_trainable(Toy(nnx.Rngs(0)), "experts")

    def loss(moving):
        model = nnx.merge(graph, moving, frozen)
        return jnp.sum(model.experts[...] @ model.kernel[...])

    # d/d experts[e, i] = sum over j of kernel[i, j] = 4; the router is not used.
    gradient = jax.grad(loss)(moving)
    assert names(gradient) == {"experts", "router"}
    chex.assert_trees_all_equal(gradient["experts"].get_value(), jnp.full((2, 4), 4.0))


def test_experts_of_a_dense_model_are_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"the model has none: set model\.moe_layers"):
        trainable.split_trainable(Toy(nnx.Rngs(0), mixture=False), "experts")


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(UserError, match="'expert': choose one of all, experts, backbone"):
        trainable.split_trainable(Toy(nnx.Rngs(0)), "expert")


def test_a_variable_that_is_no_parameter_is_an_error():
    model = Toy(nnx.Rngs(0))
    model.average = nnx.BatchStat(jnp.zeros(2))
    with pytest.raises(ValueError, match="a BatchStat is no parameter"):
        trainable.split_trainable(model, "all")


def test_counts_and_table():
    abstract = nnx.eval_shape(lambda: Toy(nnx.Rngs(0)))
    assert trainable.count_parameters(abstract) == {"experts": 8, "routers": 8, "backbone": 16}
    lines = trainable.parameter_table(abstract, "experts").splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["all backbone"][2:] == ["backbone", "frozen", "16"]
    assert rows["all experts"][2:] == ["experts", "yes", "8"]
    assert rows["trained"][-1] == "16"
    assert rows["total"][-1] == "32"
