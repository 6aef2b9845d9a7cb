"""What the data are made of: a frozen dataclass that refuses nonsense before a file is opened."""

from collections.abc import Mapping
import dataclasses
import itertools
import string

from moemoe_jax.errors import UserError

# Pillow itself refuses to open more than twice its own limit, whatever is asked of it.
_PILLOW_MAX_PIXELS = 178_956_970
_CONTEXT_FIELDS = ("marketplace", "product_type", "title", "bullets", "description")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_share(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, f"{name} is {value}: give a share between 0 and 1")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of evidence about a product: a name, a kind and the record's fields it is made of.

    A text source joins its fields, in this order, each behind its name; an image source takes the
    first readable image of its fields. `marketplace` and `product_type` may be fields as well.

    `dropout` is the probability that training takes the source away from a product (never all that
    it has). Where one source is far easier to learn from than another, a model that always has the
    easy one hardly looks at the other.

    `dropout_asks` says what a product without its text is asked then: "all", which is right where
    the other sources mostly show what the text tells as well; or "untold", all but what the text
    told: where only the text can know that, guessing it teaches nothing and drowns the rest.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    dropout: float = 0.0
    dropout_asks: str = "all"

    def __post_init__(self):
        _require(bool(self.name), "a source has no name: give data.sources names like 'text'")
        _require(
            self.kind in ("text", "image"),
            f"source {self.name!r} is of kind {self.kind!r}: a source is 'text' or 'image'",
        )
        _require(
            not isinstance(self.fields, str),
            f"source {self.name!r} has fields {self.fields!r}: give a tuple of field names",
        )
        object.__setattr__(self, "fields", tuple(self.fields))
        _require(bool(self.fields), f"source {self.name!r} has no fields: name at least one")
        _require(
            0.0 <= self.dropout < 1.0,
            f"source {self.name!r} has dropout {self.dropout}: give a value in [0, 1)",
        )
        choices = ("all", "untold") if self.kind == "text" else ("all",)
        _require(
            self.dropout_asks in choices,
            f"source {self.name!r}, of kind {self.kind!r}, has dropout_asks "
            f"{self.dropout_asks!r}: use {' or '.join(choices)}",
        )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What training changes at random in each epoch; every default is off.

    Attributes:
      flip: mirror images left to right with probability one half.
      crop_scale_min: smallest share of the image's area that a random resized crop keeps; 1 is off.
      brightness, contrast: images are scaled by a factor within 1 +- this value.
      word_dropout: probability that a word of a text source is left out (never all of them).
      hide_probability: probability that the words of a product's answers leave its text.
    """

    flip: bool = False
    crop_scale_min: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    word_dropout: float = 0.0
    hide_probability: float = 0.0

    def __post_init__(self):
        _require(
            0.0 < self.crop_scale_min <= 1.0,
            f"data.augment.crop_scale_min is {self.crop_scale_min}: give a share in (0, 1]",
        )
        for name in ("brightness", "contrast", "word_dropout"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, f"data.augment.{name} is {value}: give a value in [0, 1)")
        _require_share("data.augment.hide_probability", self.hide_probability)

    @property
    def changes_images(self) -> bool:
        """Whether images differ from epoch to epoch."""
        return self.flip or self.crop_scale_min < 1.0 or self.brightness > 0 or self.contrast > 0


DEFAULT_SOURCES = (
    SourceConfig("image", "image", ("image",)),
    SourceConfig("text", "text", _CONTEXT_FIELDS),
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything that decides what a batch looks like.

    Attributes:
      source: which records, as a reader's spec.
      val_fraction, test_fraction, split_seed: shares of the records, by hash of their ids.
      sources: the sources of evidence, in the model's order. In settings, one whose fields are ()
        is left out.
      text_length: K, the padded length of text sources, in tokens.
      text_buckets: shorter lengths, growing. A training batch is padded to the shortest that holds
        its texts, and batches are made of texts of about one length (`data.buckets`). For models
        that do not read padding: what K tokens give is then the same, for less work. Each length is
        a program to compile. Evaluation and answering pad as they do without.
      question_length: J, that of questions, the longest of which it should hold; 0 takes K. The
        token gate reads a question at each of the K source tokens, but from its end on only what
        differs is encoded (`nn.padding`): the shorter J, the less.
      answer_length: L, the most tokens of an answer, `</s>` included. Training pads to the longest
        answer of its data where that has less.
      question_template: how an attribute is asked; `{attribute}` stands for its name.
      question_templates: templates for single attributes, by name.
      attributes: the attributes to ask; none named means all that the records have.
      no_answer_text: what the model writes where a product is known to have no answer.
      null_answers: "answer" trains and evaluates on those, "skip" leaves them out.
      context_includes_question: puts the question in front of every text source; a product
        without a text has the question as its text.
      questions_per_product: Q; in training a sample of the product's, in evaluation a chunk.
      products_per_batch: P, over all processes together.
      distinct_questions: U, rows of a training batch's question table; 0 takes what every batch of
        these data needs (at most P * Q). With fewer, a batch asks U questions at most, drawn anew
        for each, which saves encoding the others; a product that has less than Q of them is asked
        less.
      image_size: side of the square image, in pixels.
      image_mean, image_std: per-channel normalisation of pixels in [0, 1], done by the model.
      max_image_pixels: larger images are rejected by their header, before they are decoded.
      hide_answer_fraction, hide_seed: share of the products, by hash of the id, whose text loses
        the words of all their answers; it belongs to the data, so to every split alike.
      max_reject_fraction: share of bad records above which a job fails.
      tokenizer: folder of a T5 tokenizer; empty trains one of `tokenizer_vocab_size` pieces.
      vocab_rows: rows of the token tables, of which published T5s have some more than pieces; None
        takes as many as the tokenizer has pieces.
      threads, prefetch: threads that make batches (0: the caller's own), and batches made ahead.
      cache_images_mib, cache_text_mib: memory for decoded images and for tokenised texts, a reader.
      augment: what training changes at random.
    """

    source: str = "catalogue"
    val_fraction: float = 0.05
    test_fraction: float = 0.2
    split_seed: int = 0
    sources: tuple[SourceConfig, ...] = DEFAULT_SOURCES
    text_length: int = 128
    text_buckets: tuple[int, ...] = ()
    question_length: int = 0
    answer_length: int = 16
    question_template: str = "{attribute}"
    question_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    no_answer_text: str = "<none>"
    null_answers: str = "answer"
    context_includes_question: bool = False
    questions_per_product: int = 4
    products_per_batch: int = 32
    distinct_questions: int = 0
    image_size: int = 64
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_image_pixels: int = 64_000_000
    hide_answer_fraction: float = 0.0
    hide_seed: int = 0
    max_reject_fraction: float = 0.01
    tokenizer: str = ""
    tokenizer_vocab_size: int = 8000
    vocab_rows: int | None = None
    threads: int = 2
    prefetch: int = 4
    cache_images_mib: int = 512
    cache_text_mib: int = 256
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self):
        _require(bool(self.source), "data.source is empty: name the records to train on")
        for name in ("sources", "attributes", "text_buckets", "image_mean", "image_std"):
            value = getattr(self, name)
            _require(not isinstance(value, str), f"data.{name} is {value!r}: give a tuple")
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "question_templates", dict(self.question_templates))
        self._check_sources()
        self._check_questions()
        self._check_numbers()

    @property
    def question_tokens(self) -> int:
        """J, the padded length of questions."""
        return self.question_length or self.text_length

    @property
    def question_tokens_setting(self) -> str:
        """Which setting J is from."""
        return "question_length" if self.question_length else "text_length"

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """What the texts of a training batch may be padded to, growing; the last is K."""
        return tuple(sorted({*self.text_buckets, self.text_length}))

    @property
    def split_fractions(self) -> dict[str, float]:
        """The shares of the records that are not trained on, by split."""
        return {"val": self.val_fraction, "test": self.test_fraction}

    def _check_sources(self):
        names = [source.name for source in self.sources]
        _require(bool(names), "data.sources is empty: name at least one source")
        _require(len(set(names)) == len(names), f"data.sources has a name twice: {names}")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            _require(len(value) == 3, f"data.{name} has {len(value)} values: one a colour, so 3")
        _require(min(self.image_std) > 0, f"data.image_std is {self.image_std}: must be positive")

    def _check_questions(self):
        check_template("data.question_template", self.question_template)
        _require(
            "{attribute}" in self.question_template,
            f"data.question_template {self.question_template!r} lacks {{attribute}}: every "
            "attribute would be the same question",
        )
        for attribute, template in self.question_templates.items():
            check_template(f"data.question_templates[{attribute!r}]", template)
        _require(
            len(set(self.attributes)) == len(self.attributes),
            f"data.attributes names one twice: {self.attributes}",
        )
        _require(
            self.null_answers in ("answer", "skip"),
            f"data.null_answers is {self.null_answers!r}: give 'answer' or 'skip'",
        )
        _require(
            bool(self.no_answer_text.strip()),
            "data.no_answer_text is empty: give the text that stands for 'no answer'",
        )
        _require(
            not self.context_includes_question or self.questions_per_product == 1,
            f"data.context_includes_question gives each question a context of its own, but "
            f"questions_per_product is {self.questions_per_product}: set it to 1",
        )
        _require(
            not self.context_includes_question or any(s.kind == "text" for s in self.sources),
            "data.context_includes_question puts the question into the text, but no source in "
            "data.sources is one: set it to False, or name a text source",
        )

    def _check_numbers(self):
        for name in ("text_length", "answer_length"):
            value = getattr(self, name)
            _require(value >= 2, f"data.{name} is {value}: a token and </s> need at least 2")
        growing = all(a < b for a, b in itertools.pairwise(self.text_buckets))
        _require(
            growing and all(2 <= bucket <= self.text_length for bucket in self.text_buckets),
            f"data.text_buckets is {self.text_buckets}: give growing lengths of 2 to "
            f"{self.text_length} (data.text_length) tokens",
        )
        _require(
            self.question_length == 0 or 2 <= self.question_length <= self.text_length,
            f"data.question_length is {self.question_length}: give 2 to {self.text_length} "
            "(data.text_length) tokens, or 0 for that many",
        )
        for name in ("questions_per_product", "products_per_batch", "image_size"):
            value = getattr(self, name)
            _require(value >= 1, f"data.{name} is {value}: must be at least 1")
        for name in ("distinct_questions", "threads", "cache_images_mib", "cache_text_mib"):
            value = getattr(self, name)
            _require(value >= 0, f"data.{name} is {value}: must not be negative")
        _require(
            self.prefetch >= self.threads,
            f"data.prefetch is {self.prefetch} batches for {self.threads} threads: give at least "
            "one batch a thread",
        )
        for name in ("val_fraction", "test_fraction", "hide_answer_fraction"):
            _require_share(f"data.{name}", getattr(self, name))
        _require_share("data.max_reject_fraction", self.max_reject_fraction)
        _require(
            self.val_fraction + self.test_fraction < 1.0,
            f"data.val_fraction {self.val_fraction} and data.test_fraction {self.test_fraction} "
            "leave nothing to train on",
        )
        _require(
            0 < self.max_image_pixels <= _PILLOW_MAX_PIXELS,
            f"data.max_image_pixels is {self.max_image_pixels}: give 1 to {_PILLOW_MAX_PIXELS}",
        )
        _require(
            bool(self.tokenizer) or self.tokenizer_vocab_size >= 400,
            f"data.tokenizer_vocab_size is {self.tokenizer_vocab_size}: bytes and ASCII alone "
            "take 354 pieces, give at least 400",
        )


def check_template(name: str, template: str) -> None:
    """Refuses a template that holds anything but text and `{attribute}`.

    Raises:
      UserError: naming the template and what is wrong with it.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{name} {template!r} has an unmatched brace: {error}") from None
    for _, field, form, conversion in parsed:
        _require(
            field in (None, "attribute") and not form and not conversion,
            f"{name} {template!r}: only {{attribute}} can be filled in, as it stands",
        )
    _require(bool(template.strip()), f"{name} is empty: give a question")
