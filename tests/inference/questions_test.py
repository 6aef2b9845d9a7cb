import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.inference.questions import QuestionTables, questions_compete
from moemoe_jax.models.config import MoELayers
from moemoe_jax.models.encoded import Encoded
from moemoe_jax.nn.moe import MoEConfig
from tests.models.tiny import MIXTURE


def counted(**limits):
    """Tables, and a list of the first ids of those that were encoded: 2 KiB each, and 8 bytes."""
    encoded = []

    def encode(ids):
        encoded.append(int(ids[0, 0]))
        rows = jnp.full((*ids.shape, 128), ids[0, 0], jnp.float32)
        return Encoded(rows, jnp.asarray(ids != 0))

    return QuestionTables(encode, **limits), encoded


def table(number, rows=1):
    return np.full((rows, 4), number, np.int32)


def test_a_table_is_encoded_once_whoever_made_it():
    tables, encoded = counted()
    first = tables(table(5))
    assert tables(table(5)) is first
    assert float(tables(table(6)).rows[0, 0, 0]) == 6
    tables(table(5).reshape(2, 2))  # the same ids in another form
    assert encoded == [5, 6, 5]


@pytest.mark.parametrize("limits", [{"tables": 2}, {"mib": 5 / 1024}])
def test_of_many_tables_those_used_last_are_kept(limits):
    tables, encoded = counted(**limits)
    for number in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, then 2 that of 3
        tables(table(number))
    assert encoded == [1, 2, 3, 2]
    assert len(tables._kept) == 2


def test_what_has_no_room_is_not_kept_and_drives_nothing_out():
    tables, encoded = counted(mib=5 / 1024)
    for number, rows in ((1, 1), (2, 3), (2, 3), (1, 1)):
        assert tables(table(number, rows)).rows.shape == (rows, 4, 128)
    assert encoded == [1, 2, 2]


@pytest.mark.parametrize(
    ("capacity", "layers", "asks", "competes"),
    [
        (1.0, "odd", True, False),  # the only layer is the first
        (1.0, "all", True, True),
        (None, "all", True, False),
        (1.0, "all", False, False),
    ],
)
def test_questions_compete_for_the_places_of_a_capacity(capacity, layers, asks, competes):
    model = dataclasses.replace(
        MIXTURE,
        moe=MoEConfig(capacity_factor=capacity),
        moe_layers=MoELayers(question_encoder=layers, decoder="all"),
        question_encoder=asks,
        fusion=dataclasses.replace(MIXTURE.fusion, gate="pooled" if asks else "unit"),
    )
    assert questions_compete(model) == competes
