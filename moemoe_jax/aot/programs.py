"""The programs of an experiment, lowered from its settings alone: no data, no arrays.

Shapes: P products, Q questions a product, U distinct questions.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from moemoe_jax.data.config import DataConfig
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.predictor import answer_batch
from moemoe_jax.inference.questions import encode_table
from moemoe_jax.parallel.sharding import replicated, rows_sharding
from moemoe_jax.training.setup import Run, jitted_step, plan

# The schedule is a function of the step: how long an epoch is changes no program.
_STEPS_PER_EPOCH = 10_000.0


def vocabulary(mapping: Any) -> int:
    """How many rows the token tables have, as the settings say it: no tokenizer is opened.

    Raises:
      UserError: where only the tokenizer would tell.
    """
    data = mapping["data"]
    rows = data.get("vocab_rows")
    if rows is None and data.get("tokenizer"):
        raise UserError(
            "the size of the vocabulary is only in the tokenizer that data.tokenizer names; "
            "add --config.data.vocab_rows=N (32128 for a published T5)"
        )
    return rows or data["tokenizer_vocab_size"]


def plan_on(config: ExperimentConfig, mesh: Mesh) -> Run:
    """The run of an experiment on a mesh, with shapes and places in place of arrays."""
    return plan(config, _STEPS_PER_EPOCH, mesh)


def abstract_batch(config: DataConfig, products: int, mesh: Mesh) -> dict[str, Any]:
    """A batch of P products as `data.batching.collate` makes it and `place_batch` places it."""

    def leaf(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding(mesh, shape[0]))

    config = dataclasses.replace(config, products_per_batch=products)
    questions = config.questions_per_product
    rows = config.distinct_questions or products * questions
    side = config.image_size
    shapes = {
        "image": (np.uint8, products, side, side, 3),
        "text": (np.int32, products, config.text_length),
    }
    return {
        "question_ids": leaf(np.int32, rows, config.question_tokens),
        "question_index": leaf(np.int32, products, questions),
        "question_valid": leaf(np.bool_, products, questions),
        "answer_ids": leaf(np.int32, products, questions, config.answer_length),
        "sources": {source.name: leaf(*shapes[source.kind]) for source in config.sources},
        "source_valid": {source.name: leaf(np.bool_, products) for source in config.sources},
    }


def lower_training(config: ExperimentConfig, run: Run) -> jax.stages.Lowered:
    """Lowers the training step as the loop runs it."""
    state, frozen = run.abstract
    batch = abstract_batch(config.data, config.data.products_per_batch, run.mesh)
    return jitted_step(config, run).lower(state, frozen, batch)


def lower_answering(config: ExperimentConfig, run: Run) -> jax.stages.Lowered:
    """Lowers what `Predictor` runs for every batch; its questions come encoded."""
    params, batch = _answered(config, run)
    ids = batch.pop("question_ids")
    if config.model.question_encoder:
        batch["encoded_questions"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(run.mesh)),
            jax.eval_shape(functools.partial(encode_table, run.graph, run.mesh), params, ids),
        )
    answer = functools.partial(
        answer_batch, run.graph, run.mesh, config.data.answer_length, config.answer
    )
    return jax.jit(answer).lower(params, batch)


def lower_questions(config: ExperimentConfig, run: Run) -> jax.stages.Lowered:
    """Lowers what `Predictor` runs for every table of questions that is new to it: the encoder.

    Raises:
      UserError: the model encodes no questions.
    """
    if not config.model.question_encoder:
        raise UserError(
            "model.question_encoder=False, so that no program encodes questions; leave "
            "'questions' out of --programs"
        )
    params, batch = _answered(config, run)
    encode = functools.partial(encode_table, run.graph, run.mesh)
    program = jax.jit(encode, out_shardings=replicated(run.mesh))
    return program.lower(params, batch["question_ids"])


def _answered(config: ExperimentConfig, run: Run) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """The parameters and a batch of as many products as are answered at a time."""
    state, frozen = run.abstract
    batch = abstract_batch(config.data, config.answer.products_per_batch, run.mesh)
    return (state.params, frozen), batch
