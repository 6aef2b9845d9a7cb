import json

from flax import nnx
import jax
import numpy as np
import pytest

from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict, to_json
from moemoe_jax.inference.loading import load
from moemoe_jax.parallel.sharding import param_shardings
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.loop import train
from moemoe_jax.training.setup import _tokenizer, first_state, open_data, plan
from moemoe_jax.workdir import WorkDir
from tests.launch import tiny


def settings(**mesh):
    """Texts alone, no experts; the mesh's axes as given."""
    config = tiny.get_config()
    del config.data.sources.image
    config.train.trainable = "all"
    config.data.products_per_batch = 8
    config.mesh.update(mesh)
    return config


@pytest.mark.parametrize(("fraction", "used", "told"), [(0.0, None, 1), (0.1, 2, 0)])
def test_a_val_split_that_is_not_used_is_told(tmp_path, fraction, used, told):
    for split, ids in (("train", "abcdefghij"), ("val", "xy")):
        records = [
            {"id": one, "sources": {"title": "red shirt"}, "attributes": {"color": "red"}}
            for one in ids
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    config, said = settings(data=8), []
    config.data.source, config.data.val_fraction = str(tmp_path), fraction
    data = open_data(config, WorkDir(tmp_path / "w"), False, said.append)
    assert (data.val and len(data.val)) == used
    notes = [line for line in said if line.startswith("note:")]
    assert len(notes) == told
    assert all("has a val split, which is not used, as data.val_fraction is 0" in n for n in notes)


@pytest.fixture
def saved_on_eight(tmp_path):
    """A work directory as an import leaves it, of a run that split its parameters over 8 devices.

    Its values are random: none of them is what an initialisation gives.
    """
    workdir = WorkDir(tmp_path / "w")
    Tokenizer.train(["a red shirt of wool"], 400).save(workdir.tokenizer)
    config = settings(data=1, fsdp=8)
    run = plan(from_config_dict(config, Tokenizer.load(workdir.tokenizer).vocab_size), 1)
    trained = run.abstract[0].params
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding),
        trained,
    )
    with Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(0, {"ema": params, "frozen": run.abstract[1]})
    workdir.claim(to_json(config))
    table = params.decoder_embedding.table[...]
    assert table.addressable_shards[0].data.shape == (table.shape[0], 2)  # 16 channels / 8
    return workdir, params


def test_a_run_starts_on_its_own_mesh_whatever_mesh_was_saved(saved_on_eight, monkeypatch):
    workdir, expected = saved_on_eight
    pair = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: pair)
    with pytest.raises(UserError, match="mesh data=1 fsdp=8 expert=1 tensor=1 needs 8 devices"):
        load(workdir)
    vocabulary = Tokenizer.load(workdir.tokenizer).vocab_size
    config = from_config_dict(settings(data=1, fsdp=2), vocabulary)
    run = plan(config, 1)
    loaded = load(workdir, mesh=run.mesh)
    assert loaded.mesh is run.mesh
    table = loaded.params[0].decoder_embedding.table[...]
    assert table.sharding.mesh.shape == {"data": 1, "fsdp": 2, "expert": 1, "tensor": 1}
    assert table.addressable_shards[0].data.shape == (table.shape[0], 8)

    state, frozen = first_state(config, run, lambda line: None, workdir)
    assert not jax.tree.leaves(frozen)
    found, wanted = (dict(nnx.to_flat_state(s)) for s in (state.params, expected))
    assert found.keys() == wanted.keys() and found
    for path, variable in found.items():
        np.testing.assert_array_equal(variable[...], wanted[path][...], err_msg=str(path))
    places = param_shardings(run.abstract[0].params, run.mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == places


def test_settings_that_do_nothing_here_are_told(saved_on_eight):
    workdir, _ = saved_on_eight
    config = settings(data=1, fsdp=8)
    config.init.expert_noise, config.init.work_dir = 0.1, str(workdir.path)
    config.data.tokenizer = "flan-t5-base"
    said = []
    tokenizer = _tokenizer(
        from_config_dict(config), None, WorkDir(workdir.path / "new"), said.append
    )
    assert tokenizer.vocab_size == Tokenizer.load(workdir.tokenizer).vocab_size
    (line,) = said
    assert "data.tokenizer=flan-t5-base is not read" in line and str(workdir.path) in line
    config.init.work_dir = ""
    built = from_config_dict(config, tokenizer.vocab_size)
    first_state(built, plan(built, 1), said.append)
    assert said[1:] == [
        "init: random values; init.expert_noise is for experts made of a dense model's blocks"
    ]


def test_a_key_of_a_former_version_is_named_with_its_file_and_the_nearest(tmp_path):
    document = json.loads(to_json(settings()))
    document["data"]["augment"]["source_dropout"] = 0.1
    old = WorkDir(tmp_path / "old")
    old.claim(json.dumps(document))
    elsewhere = settings()
    elsewhere.init.work_dir = str(old.path)
    for opening in (
        lambda: load(old),
        lambda: train(settings(), old.path),  # goes on there
        lambda: train(elsewhere, tmp_path / "new"),  # starts from there
    ):
        with pytest.raises(UserError) as caught:
            opening()
        assert str(caught.value) == (
            f"{old.config}: data.augment.source_dropout does not exist; did you mean word_dropout? "
            "(change it there, or use the version of the code that wrote it)"
        )
    assert not (tmp_path / "new").exists()
