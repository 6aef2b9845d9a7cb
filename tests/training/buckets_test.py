"""Texts padded to less than K: the same loss and gradient for less work, a program a length."""

import dataclasses
import json
import re

import chex
from flax import nnx
import jax
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.models.config import MoELayers
from moemoe_jax.training.logging import read_metrics
from moemoe_jax.training.loop import train
from moemoe_jax.training.losses import LossConfig, objective
from tests.launch import tiny
from tests.models.tiny import QUICK, WITH_IMAGE, batch, random_model


def test_a_shorter_batch_gives_the_same_loss_and_gradient_for_less_work():
    model = dataclasses.replace(
        WITH_IMAGE,
        text_length=32,
        fusion=dataclasses.replace(WITH_IMAGE.fusion, padding="zero"),  # and mask=ones
        moe_layers=MoELayers(context_encoder="all", decoder="odd"),
    )
    data = batch(model)
    text = data["sources"]["text"]
    text[:, 7:] = 0
    text[:, 7] = np.where(text[:, 6] > 1, 1, 0)
    graph, params = nnx.split(random_model(model))

    def loss(params, data):
        tokens = (data["answer_ids"] != 0).sum().astype("float32")
        return objective(nnx.merge(graph, params)(data), data, LossConfig(), tokens)

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    found, work = [], []
    for length in (32, 8):
        cut = data | {"sources": data["sources"] | {"text": text[:, :length]}}
        compiled = differentiate.lower(params, cut).compile()
        found.append(compiled(params, cut))
        work.append(compiled.cost_analysis()["flops"])
    (_, whole), gradient = found[0]
    (_, less), gradient_less = found[1]
    # All that is logged, but for how far the sources' vectors spread: padding is part of those.
    names = [name for name in whole if "variance" not in name]
    assert "loss/total" in names and any("moe/context_encoder" in name for name in names)
    chex.assert_trees_all_close(
        {name: less[name] for name in names}, {name: whole[name] for name in names}, rtol=1e-5
    )
    chex.assert_trees_all_close(gradient_less, gradient, atol=1e-5, rtol=1e-4)
    assert work[1] < 0.9 * work[0]


def settings(folder, **data):
    """Texts alone, half of them short; a model that does not read their padding."""
    lines = [
        json.dumps(
            {
                "id": f"p{i}",
                "sources": {"title": f"shirt {i % 4}" + " of red wool" * (9 * (i % 2))},
                "attributes": {"size": str(i % 4)},
            }
        )
        for i in range(32)
    ]
    (folder / "records.jsonl").write_text("\n".join(lines))
    config = tiny.get_config("text")
    config.model.fusion.padding, config.train.trainable = "zero", "all"
    config.data.source = str(folder / "records.jsonl")
    config.data.text_length, config.data.products_per_batch = 32, 8
    config.data.val_fraction = config.data.test_fraction = 0.0
    config.train.steps = 8
    config.data.update(data)
    return config


@pytest.mark.slow
def test_a_training_compiles_once_a_length_and_says_so(tmp_path, capsys):
    train(settings(tmp_path, text_buckets=(12,)), str(tmp_path / "run"))
    said = re.findall(r"train: step (\d+) has texts of (\d+) tokens: (.*)", capsys.readouterr().out)
    assert sorted(int(length) for _, length, _ in said) == [12, 32]
    assert [which for *_, which in said] == ["program 1 of at most 2", "program 2 of at most 2"]
    assert said[0][0] == "1" and int(said[1][0]) > 1
    rows = [row for row in read_metrics(tmp_path / "run") if "loss/total" in row]
    assert len(rows) == 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fusion": {"padding": "read"}}, "padding=read with mask=ones"),
        ({"alignment": {"mask_padding": False}}, "alignment.mask_padding=False compares padding"),
    ],
)
def test_a_model_that_reads_padding_is_refused(tmp_path, change, reason):
    config = settings(tmp_path, text_buckets=(12,))
    from_config_dict(config)
    config.model.update(change)
    config.data.question_length = 0  # as long as the texts
    with pytest.raises(UserError, match=f"text_buckets cuts padding off, but .*{reason}"):
        from_config_dict(config)
    config.data.text_buckets = ()
    from_config_dict(config)
