"""The PyTorch peer is the model that it is compared with: as many parameters, and the same loss."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.batches import random_batch
from benchmarks.ours import experiment
from benchmarks.peer import Peer, joint_rows
from benchmarks.sizes import get_config
from moemoe_jax.models.build import abstract_model
from moemoe_jax.training.losses import objective
from moemoe_jax.training.trainable import count_parameters
from tests.models.tiny import QUICK
from tests.models.torch_moemoe import in_our_names


def toy():
    """The tiny size with experts, made smaller still."""
    mapping = get_config("tiny,mixture")
    text, vision, data = mapping.model.text, mapping.model.vision, mapping.data
    text.d_model, text.d_kv, text.num_heads, text.d_ff, text.num_layers = 16, 8, 2, 24, 1
    text.dropout = vision.drop_path = 0.0
    vision.embed_dim, vision.depths, vision.heads = 8, (2,), (2,)
    vision.pretrained_window_sizes = (0,)
    mapping.model.moe.num_experts = 3
    mapping.model.moe.router_std = 1.0
    data.image_size, data.text_length, data.answer_length, data.vocab_rows = 16, 32, 6, 400
    data.products_per_batch, data.questions_per_product, data.distinct_questions = 3, 2, 4
    return experiment(mapping)


def test_the_peer_has_our_parameters_at_every_size():
    for argument in ("tiny", "tiny,mixture", "small", "base"):
        config = experiment(get_config(argument)).model
        with torch.device("meta"):
            theirs = sum(weight.numel() for weight in Peer(config).parameters())
        assert sum(count_parameters(abstract_model(config)).values()) == theirs, argument


def test_the_peer_has_our_loss():
    config = toy()
    batch = random_batch(config)
    torch.manual_seed(0)
    peer = Peer(config.model).eval()
    with torch.no_grad():  # its norms start at one, its biases at zero
        for weight in peer.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    graph, shapes = nnx.split(abstract_model(config.model))
    params = in_our_names(shapes, peer)

    def loss(params):
        tokens = jnp.sum(batch["answer_ids"] != 0)
        return objective(nnx.merge(graph, params)(batch), batch, config.loss, tokens)[1]

    ours = jax.jit(loss, compiler_options=QUICK)(params)
    theirs = peer(joint_rows(batch, config.model), config.loss.align_weight, config.loss.aux_weight)
    np.testing.assert_allclose(ours["loss/total"], theirs.item(), rtol=1e-5)
    plain = peer(joint_rows(batch, config.model), 0.0, 0.0)
    np.testing.assert_allclose(ours["loss/cross_entropy"], plain.item(), rtol=1e-5)
    assert ours["loss/aux"] > 0.5
    assert np.all(ours["loss/align"] > 0.01)
