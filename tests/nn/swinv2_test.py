import dataclasses
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Swinv2Model

from moemoe_jax.nn.swinv2 import SwinV2, SwinV2Config
from moemoe_jax.nn.window_attention import WindowAttention, unit
from tests.nn import torch_swinv2

TINY = SwinV2Config(
    image_size=64,
    embed_dim=16,
    depths=(2, 2),
    heads=(2, 4),
    window_size=4,
    pretrained_window_sizes=(0, 0),
)
SINGLE = dataclasses.replace(
    TINY, image_size=32, depths=(2,), heads=(2,), pretrained_window_sizes=(0,)
)
CHANGES = {
    "shifted windows": {},
    "a window that shrinks to the map": {
        "image_size": 32,
        "depths": (2, 2, 2),
        "heads": (2, 2, 4),
        "pretrained_window_sizes": (0, 0, 0),
    },
    # 35 pixels -> 9 patches, padded to 12; then 5, padded to 8, where the window counts 4 patches.
    "padding of the image, the windows and the merge": {"image_size": 35},
    "windows of another size in pre-training": {
        "pretrained_window_sizes": (6, 3),
        "qkv_bias": False,
    },
}


def pair(config: SwinV2Config) -> tuple[SwinV2, Swinv2Model]:
    theirs = torch_swinv2.randomize_(torch_swinv2.reference(config))
    ours = SwinV2(config, rngs=nnx.Rngs(0))
    torch_swinv2.load_swinv2(ours, theirs)
    return ours, theirs


def images(config: SwinV2Config, count: int = 2) -> np.ndarray:
    shape = (count, config.image_size, config.image_size, config.channels)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def value_and_gradients(model: SwinV2, pixels: np.ndarray, probe: np.ndarray):
    """Tokens, and the gradients of (tokens * probe).sum() by the names of the weights."""
    graph, params = nnx.split(model, nnx.Param)

    @functools.partial(jax.grad, has_aux=True)
    def gradients(params):
        tokens = nnx.merge(graph, params)(jnp.asarray(pixels))
        return jnp.sum(tokens * probe), tokens

    found, tokens = jax.jit(gradients)(params)
    return tokens, torch_swinv2.by_name(found)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_values_and_gradients_equal_the_reference(changes):
    ours, theirs = pair(dataclasses.replace(TINY, **changes))
    pixels = images(ours.config)
    shape = (len(pixels), ours.config.tokens, ours.config.width)
    probe = np.random.default_rng(2).normal(size=shape).astype(np.float32)

    theirs.zero_grad()
    expected = theirs(torch.from_numpy(pixels).double().permute(0, 3, 1, 2)).last_hidden_state
    (expected * torch.from_numpy(probe)).sum().backward()
    tokens, gradients = value_and_gradients(ours, pixels, probe)

    chex.assert_shape(tokens, shape)
    np.testing.assert_allclose(tokens, expected.detach().numpy(), atol=1e-5)
    wanted = torch_swinv2.arrays(theirs, gradients=True)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(np.abs(gradient).max(), 1.0)
        np.testing.assert_allclose(
            gradients[name] / scale, gradient / scale, atol=2e-5, err_msg=name
        )
        assert np.abs(gradient).max() > 1e-6, f"the reference does not depend on {name}"


def test_the_comparison_would_see_a_lost_bias_or_a_wrong_shift():
    ours, _ = pair(SINGLE)
    pixels = jnp.asarray(images(ours.config, 1))
    tokens = ours(pixels)

    flat = nnx.clone(ours)
    kernel = flat.stages[0].blocks[0].attention.bias_mlp.out_proj.kernel
    kernel[...] = jnp.zeros_like(kernel[...])
    off_by_one = nnx.clone(ours)
    off_by_one.stages[0].blocks[1].attention.shift = 1
    for other in (flat, off_by_one):
        assert jnp.abs(other(pixels) - tokens).max() > 1e-2


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
    config = dataclasses.replace(SINGLE, dtype="bfloat16")
    model, exact = SwinV2(config, rngs=nnx.Rngs(0)), SwinV2(SINGLE, rngs=nnx.Rngs(0))
    pixels = jnp.asarray(images(config))
    tokens = jax.jit(model.__call__)(pixels)
    assert tokens.dtype == jnp.bfloat16
    assert jnp.abs(tokens - jax.jit(exact.__call__)(pixels)).mean() < 0.03
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


def test_remat_changes_neither_value_nor_gradient():
    plain, _ = pair(SINGLE)
    again = nnx.clone(plain)
    for stage in again.stages:
        stage.remat = True
    pixels = images(plain.config, 1)
    probe = np.ones((1, plain.config.tokens, plain.config.width), np.float32).cumsum(-1)
    graph, params = nnx.split(again)
    program = jax.make_jaxpr(lambda p: nnx.merge(graph, p)(pixels, jax.random.key(0)))(params)
    assert sum(e.primitive.name.startswith("remat") for e in program.eqns) == 2  # one a block
    for one, other in zip(
        value_and_gradients(plain, pixels, probe),
        value_and_gradients(again, pixels, probe),
        strict=True,
    ):
        chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-4)


def test_randomness_comes_from_the_key_alone():
    config = dataclasses.replace(SINGLE, drop_path=0.5, dropout=0.1, attention_dropout=0.1)
    noisy, calm = SwinV2(config, rngs=nnx.Rngs(0)), SwinV2(SINGLE, rngs=nnx.Rngs(0))
    pixels = jnp.asarray(images(config))
    run = jax.jit(noisy.__call__)
    chex.assert_trees_all_equal(run(pixels), jax.jit(calm.__call__)(pixels))
    first, again, other = (run(pixels, jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-2


def test_drop_path_grows_linearly_and_drops_whole_samples():
    model = SwinV2(dataclasses.replace(TINY, drop_path=0.75), rngs=nnx.Rngs(0))
    blocks = [block for stage in model.stages for block in stage.blocks]
    np.testing.assert_allclose([block.drop_path for block in blocks], [0.0, 0.25, 0.5, 0.75])
    # A sample is dropped, or kept and scaled by 1 / (1 - 3/4) = 4.
    kept = blocks[-1].skip(jnp.ones((64, 2, 2, 3)), jax.random.key(0)).reshape(64, -1)
    chex.assert_trees_all_equal(kept, jnp.broadcast_to(kept[:, :1], kept.shape))
    assert set(np.unique(kept)) == {0.0, 4.0}
    chex.assert_trees_all_equal(blocks[0].skip(kept, jax.random.key(0)), kept)


def test_absolute_positions_are_added_to_the_normalised_patches():
    config = dataclasses.replace(SINGLE, absolute_positions=True)
    model, plain = SwinV2(config, rngs=nnx.Rngs(0)), SwinV2(SINGLE, rngs=nnx.Rngs(0))
    assert model.positions.shape == (8, 8, 16)
    state = nnx.state(model)
    positions = state.pop("positions")[...]
    assert 0.9 < positions.std() < 1.1
    nnx.update(plain, state)
    everywhere = jax.random.normal(jax.random.key(1), (16,))
    model.positions[...] = jnp.broadcast_to(everywhere, positions.shape)
    plain.patch_norm.bias[...] += everywhere
    pixels = jnp.asarray(images(config))
    chex.assert_trees_all_close(model(pixels), plain(pixels), atol=1e-5)


def test_only_absolute_positions_tell_the_places_of_an_empty_image_apart():
    one_block = dataclasses.replace(SINGLE, depths=(1,))
    for absolute in (False, True):
        config = dataclasses.replace(one_block, absolute_positions=absolute)
        tokens = SwinV2(config, rngs=nnx.Rngs(0))(jnp.ones((1, 32, 32, 3)))[0]
        distances = jnp.linalg.norm(tokens[:, None] - tokens[None], axis=-1)
        distances = distances[~np.eye(len(tokens), dtype=bool)]
        assert (distances.min() > 0.1) if absolute else (distances.max() < 1e-4)


def test_a_zero_vector_has_no_direction_and_no_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    chex.assert_trees_all_close(unit(x), jnp.array([[0.6, 0.8], [0.0, 0.0]]), rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(unit(x) * jnp.array([1.0, 2.0])))(x)
    # d/dx of g.x/|x|: (g - u (u.g)) / |x|, with u.g = 2.2 and |x| = 5.
    by_hand = jnp.array([[(1 - 0.6 * 2.2) / 5, (2 - 0.8 * 2.2) / 5], [0.0, 0.0]])
    chex.assert_trees_all_close(gradient, by_hand, atol=1e-6)


def test_cosines_are_scaled_by_a_hundred_at_most():
    layer = WindowAttention(4, 2, window=2, rngs=nnx.Rngs(0))
    x = 1.0 + 0.1 * jax.random.normal(jax.random.key(0), (1, 2, 2, 4))  # cosines near one another

    def output(scale):
        layer.logit_scale[...] = jnp.full((2, 1, 1), jnp.log(scale))
        return 1e3 * layer(x, None)

    chex.assert_trees_all_close(output(100.0), output(300.0), rtol=1e-5)
    assert jnp.abs(output(100.0) - output(50.0)).max() > 1e-3


def test_logical_axes_of_the_kernels():
    block = SwinV2(TINY, rngs=nnx.Rngs(0)).stages[0].blocks[0]
    axes = {
        "query": block.attention.query.kernel.logical_axes,
        "out": block.attention.out.kernel.logical_axes,
        "in": block.mlp.in_proj.kernel.logical_axes,
        "mlp out": block.mlp.out_proj.kernel.logical_axes,
    }
    assert axes == {
        "query": ("embed", "heads"),
        "out": ("heads", "embed"),
        "in": ("embed", "mlp"),
        "mlp out": ("mlp", "embed"),
    }


DEEP = {"depths": (2, 2, 18, 2)}


@pytest.mark.parametrize(
    ("settings", "width", "millions"),  # the published models tiny, small and base
    [
        ({}, 768, 27.6),
        (DEEP, 768, 49.0),
        (DEEP | {"embed_dim": 128, "heads": (4, 8, 16, 32)}, 1024, 86.9),
    ],
)
def test_the_published_models_have_their_size(settings, width, millions):
    config = SwinV2Config(**settings)
    assert (config.width, config.tokens) == (width, 64)
    shapes = nnx.state(nnx.eval_shape(lambda: SwinV2(config, rngs=nnx.Rngs(0))))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    with torch.device("meta"):
        assert count == sum(p.numel() for p in torch_swinv2.reference(config).parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (2,)}, "one per stage in each"),
        ({"window_size": 0}, "window_size is 0; it must be at least 1"),
        ({"patch_size": 0}, "patch_size is 0; it must be at least 1"),
        ({"mlp_ratio": 0.001}, "mlp_ratio is 0.001, which leaves an MLP no channel"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be positive"),
        ({"image_size": 7}, "leaves no patch for the last of 2 stages .* use at least 8"),
        ({"heads": (3, 4)}, "stage 0 has 2 blocks, 16 channels and 3 heads"),
        ({"depths": (2, 0)}, "stage 1 has 0 blocks"),
        ({"pretrained_window_sizes": (1, 0)}, "each must be 0 .* or at least 2"),
        ({"drop_path": 1.0}, r"drop_path is 1.0; it must be in \[0, 1\)"),
        ({"dtype": "int8"}, "dtype 'int8': use float32"),
    ],
)
def test_nonsense_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as refusal:
        dataclasses.replace(TINY, **changes)
    assert "\n" not in str(refusal.value)


def test_images_of_another_size_are_refused():
    model = SwinV2(TINY, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"shape \(1, 32, 64, 3\); expected"):
        model(jnp.zeros((1, 32, 64, 3)))
