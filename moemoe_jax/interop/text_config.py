"""What text model a folder holds: T5 1.0, T5 1.1, Flan-T5, mT5, umT5 or Switch Transformers.

Two things are not where one looks for them. Whether the head is tied is told by the tensors: it is,
unless there is an `lm_head.weight` of other values than the embedding table; configs say otherwise.
And whether hidden states are scaled for the logits is told by `scale_decoder_outputs`, which
transformers 5 writes for T5, or else by `tie_word_embeddings`; an mT5 never does, for transformers.
An umT5 whose file says `tie_word_embeddings` false, as those of Google do, is taken at its word and
not scaled, as it was trained; transformers 5 ignores that and scales, which changes no greedy
answer but flattens every probability.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path

from moemoe_jax.errors import UserError
from moemoe_jax.interop.maps import Roles, TensorMap
from moemoe_jax.interop.plan import equal
from moemoe_jax.interop.settings import Settings
from moemoe_jax.interop.switch_map import switch_map
from moemoe_jax.interop.t5_map import SAME_TABLE, t5_map
from moemoe_jax.interop.weights import Weights
from moemoe_jax.models.seq2seq import Seq2SeqConfig
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.routing import JITTER
from moemoe_jax.nn.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class TextModel:
    """What a folder of a text model holds.

    Attributes:
      kind: "t5", "mt5", "umt5" or "switch_transformers".
      config: of the model by itself.
    """

    kind: str
    config: Seq2SeqConfig

    def tensor_map(self, roles: Roles) -> TensorMap:
        """The map of its names; see `t5_map`."""
        make = switch_map if self.kind == "switch_transformers" else t5_map
        return make(self.config.text, roles)


def text_model(weights: Weights) -> TextModel:
    """Reads what text model a folder holds; its tensors decide on the tie.

    Raises:
      UserError: it is none of the known ones, or has a setting that is not implemented; names the
        file and the setting.
    """
    settings = Settings(Path(weights.folder) / "config.json", weights.config)
    kind = settings.one_of("model_type", tuple(_READERS), "no type at all")
    settings.fixed(is_encoder_decoder=True, is_decoder=False, pad_token_id=0, eos_token_id=1)
    settings.fixed(decoder_start_token_id=0)
    if "quantization_config" in weights.config:
        settings.refuse("quantization_config", "quantised weights are not read")
    names = set(weights.names())
    tables = [name for pair in SAME_TABLE for name in reversed(pair) if name in names]
    tied = "lm_head.weight" not in names or not tables
    tied = tied or equal(weights, "lm_head.weight", tables[0])
    try:
        return TextModel(kind, _READERS[kind](settings, tied))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{settings.path}: {error}") from None


def _shape(settings: Settings, base: T5Config, **changes) -> T5Config:
    """What all T5s have in common; `base` holds the defaults of the type."""
    layers = settings.integer("num_layers", base.num_layers)
    return T5Config(
        vocab_size=settings.integer("vocab_size", base.vocab_size, least=3),
        d_model=settings.integer("d_model", base.d_model),
        d_kv=settings.integer("d_kv", base.d_kv),
        d_ff=settings.integer("d_ff", base.d_ff),
        num_heads=settings.integer("num_heads", base.num_heads),
        num_layers=layers,
        num_decoder_layers=settings.integer("num_decoder_layers", layers),
        relative_buckets=settings.integer("relative_attention_num_buckets", 32),
        relative_max_distance=settings.integer("relative_attention_max_distance", 128),
        epsilon=settings.number("layer_norm_epsilon", 1e-6),
        dropout=settings.number("dropout_rate", 0.1),
        **changes,
    )


def _activation(settings: Settings, default: str) -> str:
    name = settings.one_of("feed_forward_proj", ("relu", "gated-gelu"), default)
    gated = name == "gated-gelu"
    # What transformers derives from it and writes as well; a file in which they differ is refused.
    settings.fixed(is_gated_act=gated)
    settings.fixed(dense_act_fn="gelu_new" if gated else "relu")
    return name


def _t5(settings: Settings, tied: bool) -> Seq2SeqConfig:
    scaled = settings.flag("tie_word_embeddings", True)
    scaled = settings.flag("scale_decoder_outputs", scaled)
    activation = _activation(settings, "relu")
    return _dense(settings, T5Config(), tied, scaled, activation)


_SMALL = T5Config(vocab_size=250112, d_ff=1024, num_heads=6, num_layers=8)


def _mt5(settings: Settings, tied: bool) -> Seq2SeqConfig:
    activation = _activation(settings, "gated-gelu")
    return _dense(settings, _SMALL, tied, False, activation)


def _umt5(settings: Settings, tied: bool) -> Seq2SeqConfig:
    scaled = settings.flag("tie_word_embeddings", True)
    activation = _activation(settings, "gated-gelu")
    return _dense(settings, _SMALL, tied, scaled, activation, per_layer_bias=True)


def _dense(settings, base, tied, scaled, activation, **changes) -> Seq2SeqConfig:
    text = _shape(
        settings,
        base,
        activation=activation,
        tie_word_embeddings=tied,
        scale_logits=None if scaled == tied else scaled,
        **changes,
    )
    return Seq2SeqConfig(text)


_SWITCH = T5Config(d_model=768, num_heads=12, num_layers=12)


def _switch(settings: Settings, tied: bool) -> Seq2SeqConfig:
    """Switch Transformers: top-1 of a softmax that is not renormalised.

    transformers drops the tokens of a row past `expert_capacity` for one expert; here nothing is
    dropped (`model.moe.capacity_factor` sets a capacity). Rows of at most that many tokens are
    never cut there, and agree. The weights of its router losses are settings of a training:
    `loss.aux_weight` and `loss.z_weight`.
    """
    settings.fixed(router_bias=False, router_dtype="float32", dense_act_fn="relu")
    settings.integer("expert_capacity", 64)
    scaled = settings.flag("tie_word_embeddings", True)
    text = _shape(
        settings,
        _SWITCH,
        activation="relu",
        tie_word_embeddings=tied,
        scale_logits=None if scaled == tied else scaled,
    )
    jitter = settings.number("router_jitter_noise", JITTER)
    if jitter not in (0.0, JITTER):
        settings.refuse("router_jitter_noise", f"implemented: 0 and {JITTER}")
    moe = MoEConfig(
        num_experts=settings.integer("num_experts", 8),
        top_k=1,
        gate="softmax_topk",
        noise="jitter" if jitter else "none",
    )
    encoder = sparse_layers(
        text.num_layers, settings.integer("num_sparse_encoder_layers", 3, least=0)
    )
    decoder = sparse_layers(
        text.num_decoder_layers, settings.integer("num_sparse_decoder_layers", 3, least=0)
    )
    return Seq2SeqConfig(text, moe, encoder, decoder)


def sparse_layers(layers: int, count: int) -> tuple[int, ...]:
    """Which of so many layers are mixtures, if a Switch Transformer's config says `count`.

    The second of every layers / count, rounded down; all where that is 1. A count of 0 is read as
    transformers reads it: it makes the second layer a mixture all the same.
    """
    step = layers // count if count else layers
    if step == 1:
        return tuple(range(layers))
    return tuple(i for i in range(layers) if step and i % step == 1)


_READERS: dict[str, Callable[[Settings, bool], Seq2SeqConfig]] = {
    "t5": _t5,
    "mt5": _mt5,
    "umt5": _umt5,
    "switch_transformers": _switch,
}
