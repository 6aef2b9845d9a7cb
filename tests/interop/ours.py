"""What our models give, compiled, for comparison with those of `torch_models`."""

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.inference import decoding


def jitted(function, model, *arrays):
    """`function(model, *arrays)` in one compiled program."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda s, *a: function(nnx.merge(graph, s), *a))
    return run(state, *arrays)


def greedy(model, texts, length):
    """Greedy ids [B, length], padded behind </s>."""
    asked = jnp.ones((len(texts), 1), bool)
    memory = model.fuse(model.encode(texts), texts)
    return decoding.greedy(model, memory, None, asked, length)[0][:, 0]


def loss(model, texts, answers):
    """Mean cross-entropy over the real tokens of the answers."""
    found = jax.nn.log_softmax(model(texts, answers))
    picked = jnp.take_along_axis(found, answers[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * (answers != 0)) / jnp.sum(answers != 0)


def value_and_gradients(function, model, *arrays, has_aux=False):
    """What `function(model, *arrays)` gives, and its gradients as a state, in one program."""
    graph, state = nnx.split(model)
    run = jax.value_and_grad(lambda s, *a: function(nnx.merge(graph, s), *a), has_aux=has_aux)
    return jax.jit(run)(state, *arrays)
