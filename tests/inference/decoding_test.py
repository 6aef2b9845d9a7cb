import dataclasses
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.inference.decoding import END, decoded, greedy
from moemoe_jax.models.config import MoELayers
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.nn.moe import MoEConfig
from tests.models.tiny import MIXTURE, QUICK, batch, random_model

LENGTH = 8
# Few words, so that some answers end early; scores from a head of their own.
TEXT = dataclasses.replace(MIXTURE.text, vocab_size=8, tie_word_embeddings=False)
ROOMY = dataclasses.replace(MIXTURE, text=TEXT, question_start=True)
# Half the choices find no slot, in both layers: who else is being answered matters.
CROWDED = dataclasses.replace(
    MIXTURE,
    text=TEXT,
    moe=MoEConfig(num_experts=2, top_k=1, capacity_factor=0.5),
    moe_layers=MoELayers(decoder="all"),
    fusion=FusionConfig(path="literal"),
)


class Problem:
    """A model that answers one batch, and the slow ways to do so."""

    def __init__(self, config, seed):
        self.data = batch(config, products=3, questions=3)
        self.asked = self.data["question_valid"]
        self.graph, self.params = nnx.split(random_model(config, seed))
        self.greedy = jax.jit(self._greedy, compiler_options=QUICK)
        self.teach = jax.jit(self._teach, compiler_options=QUICK)

    def _prepare(self, params, data):
        model = nnx.merge(self.graph, params)
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, data["question_index"], sources, model.present(data))
        return model, fused, model.question_vectors(question, data["question_index"])

    def _greedy(self, params, data):
        return greedy(*self._prepare(params, data), data["question_valid"], LENGTH)

    def _teach(self, params, answer):
        """Log-probabilities [P, Q, L, V] of what follows each token of `answer`."""
        data = self.data
        outputs = nnx.merge(self.graph, params)(data | {"answer_ids": answer})
        return jax.nn.log_softmax(outputs.logits)


@pytest.fixture(scope="module")
def roomy():
    return Problem(ROOMY, seed=10)  # weights with which some answers end, and others do not


@pytest.fixture(scope="module")
def crowded():
    return Problem(CROWDED, seed=4)  # answers end after 3, 6 and 8 tokens, two do not


def test_greedy_answers_equal_those_of_running_everything_again(roomy):
    # The slow way: for each token, all encoders and the decoder on all tokens so far. What stands
    # after those (2) is not seen; it only makes every call the same shape.
    ids = np.full((*roomy.asked.shape, LENGTH), 2, np.int32)
    scores = np.zeros(ids.shape, np.float32)
    done = ~roomy.asked
    for t in range(LENGTH):
        log_probs = np.asarray(roomy.teach(roomy.params, ids))[:, :, t]
        ids[..., t] = np.where(done, 0, log_probs.argmax(axis=-1))
        scores[..., t] = np.where(done, 0.0, log_probs.max(axis=-1))
        done |= ids[..., t] == END
    got_ids, got_scores = roomy.greedy(roomy.params, roomy.data)
    chex.assert_trees_all_equal(np.asarray(got_ids), ids)
    chex.assert_trees_all_close(np.asarray(got_scores), scores, atol=1e-4)
    ended = np.any(ids == END, axis=-1)[roomy.asked]
    assert ended.any()
    assert not ended.all()


def test_a_finished_answer_takes_no_slot(crowded):
    # The slow way: whoever is finished is taken out of the batch, which gets smaller.
    model, fused, _ = crowded._prepare(crowded.params, crowded.data)
    (rows, _), memory, weights, valid = model.read(fused)
    assert weights is None

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, tokens, t, cache, memory, valid):
        model = nnx.merge(crowded.graph, params)
        embedded = model.decoder_embedding(tokens[:, None, None])
        hidden, cache = model.decoder.step(embedded, t, cache, memory, None, valid)
        return jax.nn.log_softmax(model.logits(hidden))[:, 0, 0], cache

    left = np.flatnonzero(crowded.asked)
    cache = jax.tree.map(lambda a: a[left], model.decoder.init_cache(rows, 1, LENGTH))
    memory, valid = jax.tree.map(lambda a: a[left], (memory, valid))
    tokens, counts = np.zeros(len(left), np.int32), []
    ids = np.zeros((rows, LENGTH), np.int32)
    scores = np.zeros((rows, LENGTH), np.float32)
    for t in range(LENGTH):
        counts.append(len(left))
        log_probs, cache = step(crowded.params, tokens, t, cache, memory, valid)
        tokens = np.asarray(jnp.argmax(log_probs, axis=-1)).astype(np.int32)
        ids[left, t], scores[left, t] = tokens, np.max(log_probs, axis=-1)
        stay = np.flatnonzero(tokens != END)
        tokens, left = tokens[stay], left[stay]
        cache, memory, valid = jax.tree.map(lambda a, s=stay: a[s], (cache, memory, valid))
        if not len(left):
            break
    assert counts == [5, 5, 5, 4, 4, 4, 3, 3]
    got_ids, got_scores = crowded.greedy(crowded.params, crowded.data)
    chex.assert_trees_all_equal(np.asarray(got_ids).reshape(rows, LENGTH), ids)
    chex.assert_trees_all_close(np.asarray(got_scores).reshape(rows, LENGTH), scores, atol=1e-4)


def test_what_is_not_asked_says_nothing_and_changes_nobody(crowded):
    ids, scores = crowded.greedy(crowded.params, crowded.data)
    assert not np.any(ids[~crowded.asked])
    assert not np.any(scores[~crowded.asked])
    assert np.all(scores[crowded.asked][:, 0] < 0)
    # Other questions, and another product, where nothing is asked.
    data = crowded.data | {
        "question_index": np.where(crowded.asked, crowded.data["question_index"], 2),
        "sources": {name: ids.copy() for name, ids in crowded.data["sources"].items()},
    }
    for values in data["sources"].values():
        values[-1] = 3
    again = crowded.greedy(crowded.params, data)
    chex.assert_trees_all_equal(again, (ids, scores))


def test_nobody_asks(roomy):
    data = roomy.data | {"question_valid": np.zeros_like(roomy.asked)}
    ids, scores = roomy.greedy(roomy.params, data)
    assert ids.shape == (3, 3, LENGTH)
    assert not np.any(ids)
    assert not np.any(scores)


def test_which_ids_were_decoded_by_hand():
    ids = jnp.array([[[5, 0, 7, END, 0], [3, 4, 5, 6, 7], [END, 0, 0, 0, 0], [0, 0, 0, 0, 0]]])
    asked = jnp.array([[True, True, True, False]])
    # A padding id in the middle of an answer counts; one after its end does not.
    expected = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    chex.assert_trees_all_equal(decoded(ids, asked), jnp.array([expected], bool))
