"""Encodings of questions, kept from one batch to the next.

A question's encoding does not depend on the product, so the batches of a stream that ask the same
questions can share them. Whole tables are kept, each known by its token ids: what a batch then gets
is what one program gives for these very ids, whatever was answered before it. So a job that goes on
where it was killed has the same answers, bit for bit.

Shapes: U rows of a table of questions, J question tokens.
"""

from collections import OrderedDict
from collections.abc import Callable

from flax import nnx
import jax
from jax.sharding import AbstractMesh, Mesh
import numpy as np

from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.encoded import Encoded
from moemoe_jax.parallel.axes import using
from moemoe_jax.parallel.sharding import bytes_on_device

_TABLES = 8
_MIB = 256


def questions_compete(model: MoEMoEConfig) -> bool:
    """Whether a question's encoding depends on what else is in its table.

    It does where the experts of the question encoder have a capacity. Then a table must not have a
    question more than the batch asks; everywhere else it may.
    """
    layers = model.moe_layers.of("question_encoder", model.text.num_layers)
    return model.question_encoder and bool(layers) and model.moe.capacity_factor is not None


def encode_table(
    graph: nnx.GraphDef, mesh: Mesh | AbstractMesh, params: tuple[nnx.State, ...], ids: jax.Array
) -> Encoded:
    """Encodes a table of questions, int [U, J]: a pure function, to be jitted."""
    with using(mesh):
        return nnx.merge(graph, *params).encode_question(ids)[0]


class QuestionTables:
    """The encodings of the tables used last, by one set of parameters.

    Args:
      encode: takes a table, int32 [U, J], to its encodings on the devices. Its parameters do not
        change: those that do ask for another `QuestionTables`.
      tables: how many are kept at most.
      mib: room on a device for those that are kept; a table that needs more is encoded each time.
    """

    def __init__(
        self, encode: Callable[[np.ndarray], Encoded], tables: int = _TABLES, mib: float = _MIB
    ):
        self._encode, self._tables, self._room = encode, tables, mib * 2**20
        self._kept: OrderedDict[tuple, Encoded] = OrderedDict()

    def __call__(self, ids: np.ndarray) -> Encoded:
        """The encodings of a table."""
        name = ids.shape, ids.tobytes()
        found = self._kept.pop(name, None)
        if found is None:
            found = self._encode(ids)
        if bytes_on_device(found) <= self._room:
            self._kept[name] = found  # the last one is the one used last
        while len(self._kept) > self._tables or bytes_on_device(self._kept) > self._room:
            self._kept.popitem(last=False)
        return found
