"""A step on kept encodings against the same step that encodes, on eight devices."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from moemoe_jax.data.catalogue import CatalogueSource
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.parallel.sharding import place_batch
from moemoe_jax.training import encode_once
from moemoe_jax.training.encode_once import EncodeOnce
from moemoe_jax.training.keep_encodings import keep_encodings
from moemoe_jax.training.kept_rows import KeptRows
from moemoe_jax.training.logging import read_metrics
from moemoe_jax.training.loop import train
from moemoe_jax.training.setup import first_state, jitted_step, open_data, plan
from moemoe_jax.workdir import WorkDir
from tests.launch import tiny

STEPS = 5  # of 8 products each: the 24 of the catalogue all come again from step 3 on


def settings():
    mapping = tiny.get_config("experts")
    mapping.data.augment.flip, mapping.data.augment.word_dropout = False, 0.0
    mapping.data.val_fraction = mapping.data.test_fraction = 0.0
    mapping.data.products_per_batch, mapping.mesh.data = 8, 8
    # A step's change of the parameters is then its gradient.
    mapping.optimizer.name, mapping.optimizer.schedule = "sgd", "constant"
    mapping.optimizer.learning_rate, mapping.optimizer.warmup_steps = 1.0, 0
    mapping.optimizer.ema_decay = 0.0
    mapping.model.text.dropout = 0.1  # random in the decoder, but the same with a cache
    mapping.train.frozen_dropout, mapping.train.steps = False, STEPS
    return mapping


class Tried:
    """A run that is set up; its steps are compiled once for all tests."""

    def __init__(self, path):
        self.mapping, self.workdir = settings(), WorkDir(path)
        data = open_data(self.mapping, self.workdir, False, lambda line: None)
        config = from_config_dict(self.mapping, data.tokenizer.vocab_size)
        self.config, self.plan = config, plan(config, data.train.steps_per_epoch)
        state, self.frozen = first_state(config, self.plan, lambda line: None)
        self.state = jax.tree.map(np.asarray, state)
        self.step = jitted_step(config, self.plan)
        self.expected = self.steps(self.batches(), None, STEPS)

    def batches(self):
        return open_data(self.mapping, self.workdir, True, lambda line: None).train

    def kept(self, cache, first=0, frozen=None):
        """What a start from step `first` keeps, its batches, and what it says."""
        train = dataclasses.replace(self.config.train, cache_encodings=cache)
        batches, said = self.batches(), []
        batches.set_state(batches.get_state() | {"step": first})
        kept = keep_encodings(
            dataclasses.replace(self.config, train=train),
            self.plan,
            batches,
            self.frozen if frozen is None else frozen,
            self.workdir,
            said.append,
        )
        return kept, batches, said

    def steps(self, batches, kept, last, first=None):
        """Takes steps; the parameters and metrics after each, those before them first."""
        states = [(self.state, {})] if first is None else first
        state, _ = states[-1]
        for number in range(len(states) - 1, last):
            batch = next(batches)
            batch = place_batch(batch, self.plan.mesh, 8) if kept is None else kept(number, batch)
            state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, self.plan.abstract[0]))
            state, metrics = jax.device_get(self.step(state, self.frozen, batch))
            states.append((state, metrics))
        return states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Tried(tmp_path_factory.mktemp("run"))


def assert_same(found, expected):
    for (state, metrics), (other, others) in zip(found, expected, strict=True):
        chex.assert_trees_all_close(state, other, rtol=1e-6, atol=1e-6)
        chex.assert_trees_all_close(metrics, others, rtol=1e-6, atol=1e-6)


def test_steps_on_kept_encodings_are_those_that_encode(run):
    kept, batches, (line,) = run.kept("auto")
    assert line.startswith("encodings: those of 24 of 24 products are kept in memory, 2 KiB each")
    found = run.steps(batches, kept, STEPS)
    assert_same(found, run.expected)
    change = jax.tree.map(lambda a, b: abs(a - b).max(), found[-1][0].params, run.state.params)
    assert min(jax.tree.leaves(change)) > 1e-4
    # All are known by now, so nothing of a product is read, and none is encoded.
    assert all(kept.has(int(record)) for record in batches.records(STEPS))
    kept._encode_sources = None
    later = [next(batches) for _ in range(6)][-1]  # those that were made ahead come first
    assert not any(valid.any() for valid in later["source_valid"].values())
    assert later["question_valid"].all()
    batch = kept(STEPS + 5, later)
    assert set(batch["encoded_sources"][0].rows.sharding.spec) >= {("data", "fsdp", "expert")}
    assert all(valid.any() for valid in batch["source_valid"].values())


def test_a_training_keeps_encodings_by_itself_where_nothing_changes_them(run, tmp_path, capsys):
    train(settings(), str(tmp_path / "kept"))
    said = capsys.readouterr().out
    assert "encodings: those of 24 of 24 products are kept in memory" in said
    assert said.count("compiling the training step") == 1
    rows = [row for row in read_metrics(tmp_path / "kept") if "loss/total" in row]
    expected = [float(metrics["loss/total"]) for _, metrics in run.expected[1:]]
    np.testing.assert_allclose([row["loss/total"] for row in rows], expected, rtol=1e-6)


def test_products_that_do_not_fit_are_encoded_each_time(run):
    batches = run.batches()
    kept = EncodeOnce(
        run.config, run.plan, batches, run.frozen, lambda shapes, _: KeptRows(shapes, 5)
    )
    assert_same(run.steps(batches, kept, STEPS), run.expected)
    assert len(kept.products) == 5


def test_the_next_start_goes_on_with_what_is_on_the_disk(run):
    kept, batches, (line,) = run.kept("disk")
    assert line.endswith("KiB each; 0 are there")
    done = run.steps(batches, kept, 3)
    kept.flush()
    again, batches, (line,) = run.kept("disk", first=3)
    assert line.endswith("KiB each; 24 are there")
    again._encode_sources = None
    assert not again.has(int(batches.records(3)[0]))  # until it was compared with the product
    assert_same(run.steps(batches, again, STEPS, done), run.expected)
    assert again.has(int(batches.records(3)[0]))

    # One bit of what is kept of a product, and it is found when that product comes.
    place = again.products.names.index(int(batches.records(STEPS)[0]))
    file = again.products.folder / "array-0"
    content = bytearray(file.read_bytes())
    content[place * len(content) // 24] ^= 1
    file.write_bytes(content)
    damaged, batches, _ = run.kept("disk", first=STEPS)
    with pytest.raises(UserError, match="the same command encodes all products anew"):
        damaged(STEPS, next(batches))
    assert run.kept("disk")[2][-1].endswith("KiB each; 0 are there")


def test_other_frozen_weights_are_noticed(run):
    kept, _, _ = run.kept("disk")
    kept.products.put(0, [np.zeros(a.shape[1:], a.dtype) for a in kept.products._arrays])
    kept.flush()
    leaves, tree = jax.tree.flatten(run.frozen)
    leaves[-1] = 2 * leaves[-1]
    fresh, _, (anew, line) = run.kept("disk", frozen=jax.tree.unflatten(tree, leaves))
    assert anew.endswith("is of no use (the frozen weights changed); it is made anew")
    assert line.endswith("KiB each; 0 are there") and len(fresh.products) == 0


def test_another_image_file_is_noticed(run, monkeypatch):
    kept, _, _ = run.kept("disk")
    kept.products.put(0, [np.zeros(a.shape[1:], a.dtype) for a in kept.products._arrays])
    kept.flush()
    monkeypatch.setattr(CatalogueSource, "files_digest", "another", raising=False)
    _, _, (anew, _) = run.kept("disk")
    assert anew.endswith("is of no use (size or time of image files changed); it is made anew")


def test_room_for_no_product_is_refused(run, monkeypatch):
    monkeypatch.setattr(encode_once, "bytes_of", lambda shapes: 2**31)
    with pytest.raises(UserError, match=r"of one product take 2\.05e\+03 MiB; give more"):
        run.kept("memory")


def test_every_process_knows_how_often_all_of_them_encode(run):
    """Two processes make rows 0..3 and 4..7 of a batch, and encode 2 products at a time each."""
    kept = EncodeOnce(
        run.config, run.plan, run.batches(), run.frozen, lambda shapes, _: KeptRows(shapes, 6)
    )
    kept._rows = {0: (0, 1, 2, 3), 1: (4, 5, 6, 7)}
    kept._made_at_once, kept._kept_by = {0: 2, 1: 2}, {0: {1, 2, 3}, 1: set()}
    # Process 0 lacks one product, twice in the batch; process 1 lacks three, in two parts.
    assert kept._missing(np.array([1, 9, 9, 2, 1, 2, 3, 3])) == ([9], 2)
    assert kept._kept_by == {0: {1, 2, 3, 9}, 1: {1, 2, 3}}
    # Room for two more in process 0, three in process 1: the first that come.
    assert kept._missing(np.array([4, 5, 6, 7, 1, 2, 3, 1])) == ([4, 5, 6, 7], 2)
    assert kept._kept_by[0] == {1, 2, 3, 9, 4, 5}
    assert kept._missing(np.array([4, 5, 9, 1, 1, 2, 3, 1])) == ([], 0)
