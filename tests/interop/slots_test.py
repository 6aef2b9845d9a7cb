import dataclasses

from flax import nnx
import numpy as np

from moemoe_jax.interop.slots import by_leaf, slots
from moemoe_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from moemoe_jax.nn.moe import MoEConfig
from tests.nn.torch_t5 import TINY

CONFIG = Seq2SeqConfig(
    dataclasses.replace(TINY, num_layers=2, num_decoder_layers=4),
    MoEConfig(num_experts=3),
    decoder_moe=(1, 3),
)


def model(scan):
    text = dataclasses.replace(CONFIG.text, scan_layers=scan)
    config = dataclasses.replace(CONFIG, text=text)
    return nnx.eval_shape(lambda: Seq2Seq(config, rngs=nnx.Rngs(0)))


def test_slots_are_the_same_however_layers_are_stored():
    plain, stacked = slots(model(False)), slots(model(True))
    assert {n: s.shape for n, s in plain.items()} == {n: s.shape for n, s in stacked.items()}
    # Layers 1 and 3 are mixtures: the second position of a pattern of two, repeated twice.
    name = "decoder/stack/3/feed_forward/wi/kernel/2"
    assert plain[name].index == (2,) and plain[name].shape == (32, 64)
    assert stacked[name].index == (1, 2)
    assert stacked[name].leaf == plain["decoder/stack/1/feed_forward/wi/kernel/2"].leaf
    assert stacked["decoder/stack/2/feed_forward/wi/kernel"].index == (1,)
    assert stacked["embedding/table"].index == ()


def test_slots_cover_a_model_and_do_not_overlap():
    for scan in (False, True):
        found = model(scan)
        leaves = dict(nnx.to_flat_state(nnx.state(found)))
        counted = {path: np.zeros(v.shape, int) for path, v in leaves.items()}
        for path, inside in by_leaf(slots(found)).items():
            for slot in inside.values():
                assert slot.dtype == np.float32
                counted[path][slot.index] += 1
        assert all(np.all(count == 1) for count in counted.values())
