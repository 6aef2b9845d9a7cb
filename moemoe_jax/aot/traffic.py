"""The bytes that a device must move with its own memory, whatever program runs.

Parameters are read once for each pass that multiplies with them, in the dtype of use; what the
backward pass needs of the forward pass is written once and read once; gradients, moments and
parameters go there and back once in an update. What lies in between is taken as never leaving the
chip, so that a program moves more: `work.hbm_bytes` has what one does.

Shapes: L answer tokens.
"""

from flax import nnx
import jax
from jax.extend import core
import jax.numpy as jnp

from moemoe_jax.aot.flops import answered, read_rows
from moemoe_jax.aot.minimum import QUESTIONS, need_of, variables
from moemoe_jax.aot.programs import abstract_batch
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.nn import rng
from moemoe_jax.parallel.axes import shards, using
from moemoe_jax.parallel.sharding import bytes_on_device
from moemoe_jax.training.encoders import encoders_of
from moemoe_jax.training.losses import objective
from moemoe_jax.training.setup import Run


def training_traffic(config: ExperimentConfig, run: Run) -> dict[str, float]:
    """Bytes of one device in a training step, by what they are of."""
    state, frozen = run.abstract
    needs = [
        need_of(config, run, name, variable)
        for tree in (state.params, frozen)
        for name, variable in variables(tree)
    ]
    # A gradient is written and read, and so are the parameter, its moments and its average.
    updated = 2 * bytes_on_device(state.params) + bytes_on_device((state.optimizer, state.ema))
    return {
        "parameters": sum(need.passes * need.whole for need in needs),
        "optimizer": 2.0 * updated,
        "activations": 2.0 * kept_bytes(config, run) / shards("batch", run.mesh),
    }


def answering_traffic(config: ExperimentConfig, run: Run) -> dict[str, float]:
    """Bytes of one device for a batch's answers of L tokens, by what they are of.

    The decoder's parameters, and all keys and values, are read for every token; a table of tokens
    is looked up, which is next to nothing, unless it is the output layer as well. Questions come
    encoded.
    """
    text, data = config.model.text, answered(config).data
    state, frozen = run.abstract
    parameters = 0.0
    for tree in (state.params, frozen):
        for name, variable in variables(tree):
            if name.startswith(QUESTIONS):
                continue
            table = variable.get_metadata()["logical_axes"][0] == "vocab"
            every = name.startswith(("decoder/", "lm_head/")) and not table
            if table and text.tie_word_embeddings and name.startswith("decoder_embedding/"):
                every = True
            times = data.answer_length if every else float(not table)
            parameters += times * need_of(config, run, name, variable).whole
    asked = data.products_per_batch * data.questions_per_product
    literal = config.model.fusion.path == "literal"
    memory = asked * data.text_length if literal else data.products_per_batch * read_rows(config)
    own = asked * config.answer.beams * data.answer_length
    row = 2.0 * text.num_heads * text.d_kv * jnp.dtype(text.dtype).itemsize
    cached = (memory + own) * row * (text.num_decoder_layers or text.num_layers)
    return {
        "parameters": parameters,
        "keys and values": (1 + data.answer_length) * cached / shards("batch", run.mesh),
    }


def kept_bytes(config: ExperimentConfig, run: Run) -> float:
    """What the forward pass keeps for the backward pass, of all devices, without parameters.

    It is read off the traced step: of every value once, though two may need it.
    """
    encoders = encoders_of(config)
    state, frozen = run.abstract

    def backward(params, frozen, batch):
        def loss(params):
            model = nnx.merge(run.graph, params, frozen)
            keys = rng.split(jax.random.key(0), 2)
            encoded = model.encode(batch, keys[0] if encoders.drop_out else None)
            outputs = model.read_encoded(batch, encoded, keys[1], align=not encoders.frozen)
            return objective(outputs, batch, config.loss, jnp.ones(()))[0]

        with using(run.mesh):
            return jax.vjp(loss, params)[1]

    batch = abstract_batch(config.data, config.data.products_per_batch, run.mesh)
    traced = jax.make_jaxpr(backward)(state.params, frozen, batch).jaxpr
    given = {id(value) for value in (*traced.invars, *traced.constvars)}
    # Parameters in the dtype of use are read as parameters.
    shapes = {leaf.shape for leaf in jax.tree.leaves((state.params, frozen))}
    kept = {
        id(value): value.aval
        for value in traced.outvars
        if not isinstance(value, core.Literal)
        and id(value) not in given
        and value.aval.shape not in shapes
    }
    return float(sum(value.size * value.dtype.itemsize for value in kept.values()))
