"""What a MoEMoE is made of."""

import dataclasses

from moemoe_jax.models.alignment import AlignmentConfig
from moemoe_jax.models.encoded import check_image_length
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.models.gates import GATES
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.padding import padding_runs
from moemoe_jax.nn.swinv2 import SwinV2Config
from moemoe_jax.nn.t5 import T5Config

KINDS = ("text", "image")
SHARINGS = ("all", "context_decoder", "none")
LAYER_NAMES = "none, all, odd, even, last, last2, or numbers such as 1,3,5"


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """One source: its name in the batch and its kind, "text" or "image"."""

    name: str
    kind: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"data.sources.{self.name}.kind is {self.kind!r}; use text or image")


@dataclasses.dataclass(frozen=True)
class MoELayers:
    """Which layers of each stack have a mixture in place of their feed-forward block.

    Each is none, all, odd, even, last, last2, or numbers such as "1,3,5". Odd and even count from
    `index_base`; numbers are positions from 0.
    """

    question_encoder: str = "none"
    context_encoder: str = "none"
    decoder: str = "none"
    index_base: int = 0

    def __post_init__(self):
        if self.index_base not in (0, 1):
            raise ValueError(f"model.moe_layers.index_base is {self.index_base}; use 0 or 1")

    def of(self, stack: str, depth: int) -> tuple[int, ...]:
        """The positions, from 0, of the mixture layers of a stack of `depth` layers.

        Raises:
          ValueError: for a name that is none of the above, or a position beyond the stack.
        """
        text = str(getattr(self, stack)).strip()
        layers = range(depth)
        named = {
            "none": (),
            "all": layers,
            "odd": [i for i in layers if (i + self.index_base) % 2 == 1],
            "even": [i for i in layers if (i + self.index_base) % 2 == 0],
            "last": layers[-1:],
            "last2": layers[-2:],
        }
        if text in named:
            return tuple(named[text])
        try:
            chosen = tuple(sorted({int(part) for part in text.split(",")}))
        except ValueError:
            raise ValueError(f"model.moe_layers.{stack} is {text!r}; use {LAYER_NAMES}") from None
        if chosen[0] < 0 or chosen[-1] >= depth:
            raise ValueError(
                f"model.moe_layers.{stack} is {text!r}, but the stack has layers 0 to {depth - 1}"
            )
        return chosen


@dataclasses.dataclass(frozen=True)
class MoEMoEConfig:
    """The whole model.

    Attributes:
      text: shape of the question encoder, the context encoder and the decoder.
      vision: shape of the image encoder.
      fusion: question-guided attention, eqs 3-5.
      alignment: the alignment losses, eqs 6-7.
      moe: the mixture layers, and `moe_layers`: where they stand.
      question_encoder: False leaves the question encoder out; the question is then part of the
        context text (the paper's S-Enc), the fusion has unit weights and there is no alignment.
      question_start: adds the question's mean vector, projected, to the decoder's start token.
        Where the context does not hold the question, the gate's scalars are all that tells the
        decoder what is asked; this tells it directly. The paper has the question in the context.
      share_embeddings: "all": one token table; "context_decoder": the question encoder has its
        own (T5's tie for the rest); "none": three tables.
      sources: the sources, in the order of the fusion. Filled in from `data.sources`.
      text_length: K, tokens of each text source and of e. From `data.text_length`.
      image_mean: of the pixels in 0..1 per channel, and `image_std`. From `data`.
    """

    text: T5Config = T5Config()
    vision: SwinV2Config = SwinV2Config()
    fusion: FusionConfig = FusionConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    moe: MoEConfig = MoEConfig()
    moe_layers: MoELayers = MoELayers()
    question_encoder: bool = True
    question_start: bool = False
    share_embeddings: str = "context_decoder"
    sources: tuple[SourceSpec, ...] = (SourceSpec("image", "image"), SourceSpec("text", "text"))
    text_length: int = 128
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.share_embeddings not in SHARINGS:
            raise ValueError(
                f"model.share_embeddings is {self.share_embeddings!r}; "
                f"choose one of {', '.join(SHARINGS)}"
            )
        if not self.sources:
            raise ValueError("data.sources is empty; name at least one source")
        if self.has("image"):
            check_image_length(self.fusion.image_repeat, self.vision.tokens, self.text_length)
            if self.vision.channels != 3:
                raise ValueError(
                    f"model.vision.channels is {self.vision.channels}, but images are read in "
                    "three colours; set it to 3"
                )
        self._check_question()
        self._check_routing()

    def _check_question(self):
        if not self.question_encoder:
            if self.fusion.gate != "unit":
                raise ValueError(
                    "without a question encoder nothing guides the sources; "
                    "set model.fusion.gate=unit or model.question_encoder=True"
                )
            if self.question_start:
                raise ValueError("model.question_start needs model.question_encoder=True")

    def _check_routing(self):
        level, layers = self.moe.routing_level, self.moe_layers
        for stack in ("question_encoder", "context_encoder"):
            layers.of(stack, self.text.num_layers)
        layers.of("decoder", self.text.num_decoder_layers)
        if level == "sequence" and layers.decoder != "none":
            raise ValueError(
                "model.moe.routing_level=sequence averages over a whole answer, so a decoder would "
                "see tokens to come; use token or question, or set model.moe_layers.decoder=none"
            )
        if level == "question":
            if layers.question_encoder != "none" or layers.context_encoder != "none":
                raise ValueError(
                    "model.moe.routing_level=question is for the decoder: the encoders run before "
                    "question and product meet; set model.moe_layers.*_encoder=none"
                )
            if not self.question_encoder:
                raise ValueError(
                    "model.moe.routing_level=question needs model.question_encoder=True"
                )

    @property
    def reads_question_padding(self) -> bool:
        """Whether a question is read at all K positions, past its own tokens."""
        return GATES[self.fusion.gate].reads_positions or not self.alignment.mask_padding

    def question_runs(self, tokens: int) -> tuple[int, ...]:
        """How many positions each row of an encoded question stands for (see `nn.padding`).

        Args:
          tokens: J, that a question comes with.
        """
        length = self.text_length if self.reads_question_padding else tokens
        buckets = self.text.relative_buckets, self.text.relative_max_distance
        return padding_runs(tokens, length, *buckets)

    def has(self, kind: str) -> bool:
        """Whether any source is of this kind."""
        return any(source.kind == kind for source in self.sources)
