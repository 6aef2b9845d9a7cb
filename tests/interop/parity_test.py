"""Each family as transformers saves it, loaded here: the same numbers, gradients and answers."""

import types

import chex
from flax import nnx
import jax
import numpy as np
import pytest
import torch

from moemoe_jax.interop.loading import ALONE, load_text, load_vision
from moemoe_jax.interop.slots import slots
from moemoe_jax.interop.swinv2_map import swinv2_map
from moemoe_jax.interop.text_config import text_model
from moemoe_jax.interop.weights import open_weights
from tests.interop import ours, torch_models

TEXT_IDS = torch_models.ids((9, 4, 7, 2), 9, 100)
ANSWERS = torch_models.ids((6, 3, 5, 4), 6, 100, seed=1)
STEPS = 12


@pytest.fixture(scope="module", params=torch_models.TEXTS)
def text(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    theirs = torch_models.save_text(request.param, folder)
    return types.SimpleNamespace(folder=folder, theirs=theirs, model=load_text(folder))


def values_by_slot(model, state):
    """A state's arrays cut into slots."""
    arrays = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(state)}
    return {name: arrays[slot.leaf][slot.index] for name, slot in slots(model).items()}


def same_gradients(found, theirs, tensor_map):
    """Asserts that each slot's gradient is that of the tensor it came from."""
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    used = set()
    for name, gradient in found.items():
        row, source = tensor_map.source(name)
        if expected[source] is None:  # an expert that no token went to
            assert "/feed_forward/" in name
            assert not np.any(gradient)
            continue
        wanted = row.transform.forward(expected[source].numpy())
        scale = max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(gradient / scale, wanted / scale, atol=1e-4, err_msg=source)
        assert np.abs(wanted).max() > 1e-7, f"the loss does not depend on {source}"
        used.add(source)
    assert used == {name for name, gradient in expected.items() if gradient is not None}


def test_hidden_states_and_logits_equal_pytorch(text):
    both = ours.jitted(lambda m, x, y: (m.encode(x), m(x, y)), text.model, TEXT_IDS, ANSWERS)
    hidden, logits = both
    real = TEXT_IDS != 0
    expected = torch_models.hidden_states(text.theirs, TEXT_IDS)
    np.testing.assert_allclose(np.asarray(hidden)[real], expected[real], atol=2e-5)
    with torch.no_grad():
        expected = torch_models.scores(text.theirs, TEXT_IDS, ANSWERS).numpy()
    real = ANSWERS != 0
    assert expected[real].std() > 0.1
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-4)


def test_the_loss_and_the_gradient_of_every_weight_equal_pytorch(text):
    text.theirs.zero_grad()
    expected = torch_models.loss(text.theirs, TEXT_IDS, ANSWERS)
    expected.backward()
    loss, found = ours.value_and_gradients(ours.loss, text.model, TEXT_IDS, ANSWERS)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    tensor_map = text_model(open_weights(text.folder)).tensor_map(ALONE)
    same_gradients(values_by_slot(text.model, found), text.theirs, tensor_map)


def test_greedy_answers_equal_pytorch(text):
    expected = torch_models.greedy(text.theirs, TEXT_IDS, STEPS)
    assert len(np.unique(expected)) > 2
    found = ours.jitted(lambda m, x: ours.greedy(m, x, STEPS), text.model, TEXT_IDS)
    chex.assert_trees_all_equal(np.asarray(found), expected)


@pytest.mark.parametrize("name", torch_models.VISIONS)
def test_image_tokens_and_gradients_equal_pytorch(name, tmp_path):
    theirs = torch_models.save_vision(tmp_path, **torch_models.VISIONS[name])
    model = load_vision(tmp_path)
    side = model.config.image_size
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    expected = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state
    probe = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    (expected * torch.from_numpy(probe)).sum().backward()

    def probed(model, pixels):
        tokens = model(pixels)
        return jax.numpy.sum(tokens * probe), tokens

    (_, tokens), found = ours.value_and_gradients(probed, model, pixels, has_aux=True)
    np.testing.assert_allclose(tokens, expected.detach().numpy(), atol=5e-5)
    tensor_map = swinv2_map({"vision": ("",)})
    same_gradients(values_by_slot(model, found), theirs, tensor_map)
