"""The built-in catalogue as a source of records: generated, deterministic, with evidence known.

For every product and attribute a die decides where the value can be seen: in the image only, in the
text only, in both, or nowhere (gold answer: none). Text and image are made from just the values
that each of them may show, so the evidence holds by construction. All values are drawn
independently and uniformly: the best guess without the evidence is right for one value in as many
as there are.

A record is a function of (seed, split, index) alone, so access is random, in any order and from any
number of threads or processes.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import random

from moemoe_jax.data.catalogue import schema
from moemoe_jax.data.catalogue.drawing import encode_png, render
from moemoe_jax.data.catalogue.text import DISTRACTING, write_text
from moemoe_jax.data.records import Record
from moemoe_jax.errors import UserError

SPLITS = ("train", "val", "test")
MARKETPLACES = ("IN", "US", "UK", "CA")
EXTRAS_PER_PRODUCT = 4
_DISTRACTED = 0.25  # share of products whose text tells a value of another product

# Where the value of an attribute can be seen: cumulative shares.
_DRAWN = (("image", 0.40), ("both", 0.55), ("text", 0.85), ("none", 1.0))
_TOLD = (("text", 0.85), ("none", 1.0))


@dataclasses.dataclass(frozen=True)
class CatalogueConfig:
    """What the catalogue is made from.

    Attributes:
      products: number of training products; "val" and "test" have a tenth of it each, beside them.
      seed: another seed gives other products.
      label_noise: share of the answers of "train" that are replaced by another value of the
        attribute; text and image go on telling the truth.
      extra_question_types: number of synthetic attributes ("spec 0421") that share one vocabulary
        and are told by the text; every product is asked a few of them.
      image_size: side of the image in pixels.

    Raises:
      UserError: a value that makes no sense.
    """

    products: int = 4000
    seed: int = 0
    label_noise: float = 0.0
    extra_question_types: int = 0
    image_size: int = 64

    def __post_init__(self):
        for name, least in (("products", 1), ("extra_question_types", 0), ("image_size", 16)):
            if getattr(self, name) < least:
                raise UserError(f"catalogue: {name}={getattr(self, name)}; give {least} or more")
        if not 0.0 <= self.label_noise < 1.0:
            raise UserError(
                f"catalogue: label_noise={self.label_noise}; give a share from 0 to below 1"
            )


def parse_config(text: str) -> CatalogueConfig:
    """Reads "products=4000,seed=0"; what is not given keeps its default.

    Raises:
      UserError: an unknown key (the nearest valid one is named), a repeated key or a wrong value.
    """
    kinds = {f.name: type(f.default) for f in dataclasses.fields(CatalogueConfig)}
    given: dict[str, int | float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.0)[0]
            raise UserError(
                f"catalogue: unknown key {key!r}: did you mean {near!r}? (keys: {', '.join(kinds)})"
            )
        if key in given:
            raise UserError(f"catalogue: {key!r} is given twice; give it once")
        try:
            given[key] = kinds[key](value)
        except ValueError:
            what = "a whole number" if kinds[key] is int else "a number"
            raise UserError(f"catalogue: {key}={value!r}; give {what}") from None
    return CatalogueConfig(**given)


def make_record(
    id: str,
    product_type: str,
    values: Mapping[str, str],
    evidence: Mapping[str, str],
    *,
    text_seed: int,
    image_seed: int,
    distractor: tuple[str, str] | None = None,
    marketplace: str = "IN",
    image_size: int = 64,
) -> Record:
    """Makes one record; text and image see no value but those that they may show.

    Args:
      id: the id of the record.
      product_type: one of `schema.PRODUCT_TYPES`.
      values: attribute -> the true value.
      evidence: attribute -> "image", "text", "both" or "none", with the keys of `values`.
      text_seed: decides the wording.
      image_seed: decides background, place, scale, light and noise.
      distractor: (attribute, value) that the text tells of another product.
      marketplace: where the product is sold.
      image_size: side of the image in pixels.

    Returns:
      A record with sources "title", "bullets", "description" (texts) and "image" (PNG bytes). An
      attribute with evidence "none" has the value None.

    Raises:
      ValueError: evidence "image" or "both" for an attribute that cannot be drawn.
    """
    told = {name: v for name, v in values.items() if evidence[name] in ("text", "both")}
    shown = {name: v for name, v in values.items() if evidence[name] in ("image", "both")}
    text = write_text(product_type, told, text_seed, distractor)
    return Record(
        id=id,
        sources={
            "title": text["title"],
            "bullets": tuple(text["bullets"]),
            "description": text["description"],
            "image": encode_png(render(product_type, shown, image_seed, image_size)),
        },
        product_type=product_type,
        marketplace=marketplace,
        attributes={name: None if evidence[name] == "none" else v for name, v in values.items()},
        evidence=dict(evidence),
    )


class CatalogueSource:
    """One split of the catalogue; `source[i]` is made when it is asked for."""

    splits = SPLITS

    def __init__(self, config: CatalogueConfig | None = None, split: str | None = None):
        """Opens a split.

        Args:
          config: what the catalogue is made from.
          split: "train" (also meant by None), "val" or "test".

        Raises:
          UserError: an unknown split.
        """
        split = "train" if split is None else split
        if split not in SPLITS:
            raise UserError(
                f"catalogue: unknown split {split!r}; choose one of {', '.join(SPLITS)}"
            )
        self.config = CatalogueConfig() if config is None else config
        self.split = split
        self.name = f"catalogue[{split}]"

    @classmethod
    def from_spec(cls, spec_tail: str, split: str | None = None) -> "CatalogueSource":
        """Opens what stands behind "catalogue:", e.g. "products=4000,seed=0".

        Raises:
          UserError: see `parse_config` and `__init__`.
        """
        return cls(parse_config(spec_tail), split)

    def __len__(self) -> int:
        products = self.config.products
        return products if self.split == "train" else max(1, products // 10)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.name}")
        index = int(index) % len(self)
        config = self.config
        place = f"{config.seed}/{self.split}/{index}"
        rng = random.Random(place)
        product_type = rng.choice(schema.PRODUCT_TYPES)
        distractor = None
        if rng.random() < _DISTRACTED:
            name = rng.choice(DISTRACTING)
            distractor = (name, rng.choice(schema.VALUES[name]))
        values, evidence = {}, {}
        for name in schema.ASKED[product_type]:
            # The distractor's value is never the product's own, or it would give it away.
            choices = [v for v in schema.VALUES[name] if (name, v) != distractor]
            values[name] = rng.choice(choices)
            evidence[name] = _throw(rng, _DRAWN if name in schema.DRAWABLE else _TOLD)
        text_seed, image_seed = rng.getrandbits(64), rng.getrandbits(64)
        marketplace = rng.choice(MARKETPLACES)
        # Streams of their own: neither the extras nor the noise change the rest of a product.
        self._add_extras(random.Random(place + "/extras"), values, evidence)
        record = make_record(
            f"catalogue-{config.seed}-{self.split}-{index:07d}",
            product_type,
            values,
            evidence,
            text_seed=text_seed,
            image_seed=image_seed,
            distractor=distractor,
            marketplace=marketplace,
            image_size=config.image_size,
        )
        if self.split == "train" and config.label_noise:
            noisy = _with_noise(
                record.attributes, config.label_noise, random.Random(place + "/noise")
            )
            record = dataclasses.replace(record, attributes=noisy)
        return record

    def __repr__(self) -> str:
        return f"CatalogueSource({self.config}, split={self.split!r})"

    def _add_extras(self, rng: random.Random, values: dict, evidence: dict) -> None:
        total = self.config.extra_question_types
        for number in rng.sample(range(total), min(EXTRAS_PER_PRODUCT, total)):
            name = schema.extra_name(number)
            values[name] = rng.choice(schema.EXTRA_VALUES)
            evidence[name] = _throw(rng, _TOLD)


def _throw(rng: random.Random, shares) -> str:
    point = rng.random()
    return next(name for name, upto in shares if point < upto)


def _with_noise(attributes: Mapping, share: float, rng: random.Random) -> dict:
    """The answers with a share of them replaced; an attribute without an answer stays without."""
    noisy = dict(attributes)
    for name, value in attributes.items():
        if value is not None and rng.random() < share:
            noisy[name] = rng.choice([v for v in schema.values_of(name) if v != value])
    return noisy
