"""Varied product text: title, bullets and description that tell some values and nothing else.

The text is a function of the product type, the told values, an optional distractor and a seed. A
value that is not told cannot leak, since this module never sees it. A distractor is a value that
belongs to another product, and its sentence always says so ("goes well with any red skirt").
"""

from collections.abc import Mapping
import random

from moemoe_jax.data.catalogue import schema

BRANDS = (
    "Zorvane", "Kelmoor", "Tisaro", "Brindle Co", "Ovanta", "Perrilo", "Maruska", "Lindqua",
    "Fenwold", "Ishtara",
)  # fmt: skip

_GENERIC = ("{name}: {value}", "{name} - {value}", "the {name} is {value}", "{value} {name}")

# Beside the generic ways, how a shop would put it.
_PHRASES: dict[str, tuple[str, ...]] = {
    "age range description": ("sized for {value} wearers", "meant for the {value} range"),
    "belt style": ("finished with a {value} belt", "a {value} belt completes it"),
    "bottom style": ("{value} at the legs", "cut with a {value} shape below"),
    "care instructions": ("{value} only", "please {value} this piece"),
    "closure type": ("closes by {value}", "{value} fastening"),
    "collar style": ("features a {value}", "framed by a {value}"),
    "collection": ("part of our {value} line", "from the {value} range"),
    "color": ("comes in {value}", "in a lovely {value} shade", "dyed {value} all over"),
    "cup size": ("fits {value}", "made to hold {value}"),
    "department": ("designed for the {value} floor", "{value} section"),
    "design name": ("known as the {value} design", "we call it {value}"),
    "fabric type": ("soft {value} fabric", "sewn from {value}"),
    "fabric wash": ("{value} look", "comes {value} from the mill"),
    "finish type": ("a {value} surface", "{value} to the touch"),
    "fit type": ("{value} cut", "wears {value} on the body"),
    "front style": ("{value} design at the front", "made {value}"),
    "item length description": ("{value} hem", "reaches {value}"),
    "item styling": ("{value} look", "a {value} piece at heart"),
    "lining description": ("{value} inside", "comes {value}"),
    "material": ("made of {value}", "pure {value} yarn"),
    "neck style": ("shaped with a {value}", "has a {value}"),
    "occasion type": ("right for {value} wear", "made for {value} days"),
    "outer material": ("{value} shell", "{value} on the outside"),
    "pattern type": ("{value} all around", "with a {value} print"),
    "pocket description": ("comes with a {value}", "useful {value} in reach"),
    "rise style": ("sits {value} on the hips", "has a {value}"),
    "seasons": ("best worn in {value}", "part of every {value} wardrobe"),
    "sleeve type": ("{value} design", "cut as {value}"),
    "sport type": ("made for {value}", "your partner for {value}"),
    "strap type": ("held by a {value}", "carries a {value} design"),
    "style": ("inspired by {value} fashion", "with {value} touches"),
    "subject character": ("shows a {value}", "with a cheerful {value} on it"),
    "theme": ("speaks of {value}", "for friends of {value}"),
    "toe style": ("has an {value} shape", "knitted with {value}"),
    "top style": ("the upper part is a {value}", "{value} above"),
    "underwire type": ("{value} support", "shaped {value}"),
    "waist style": ("gathered by a {value}", "with a {value}"),
    "weave type": ("woven as {value}", "{value} cloth"),
}

# These read well as words in front of the product type in a title.
_TITLE = frozenset(
    {
        "color", "pattern type", "material", "fit type", "department", "fabric type", "style",
        "sleeve type", "neck style", "item length description", "item styling", "seasons",
        "occasion type", "finish type", "outer material", "theme", "design name",
    }
)  # fmt: skip

DISTRACTING = ("color", "pattern type", "material", "fabric type", "outer material", "style")

_DISTRACTORS = (
    "goes well with any {value} {other}",
    "looks great next to our {value} {other}",
    "buyers also chose the {value} {other}",
    "try it together with our {value} {other}",
)

_FILLERS = (
    "ships in recyclable packaging",
    "free returns within thirty days",
    "a wardrobe staple you will reach for again",
    "made with care by skilled hands",
    "tested for comfort and lasting quality",
    "thoughtful details in every seam",
    "arrives neatly folded in a gift box",
    "every order supports our workshop",
    "a gift that is always welcome",
    "easy to pack for a trip",
)

_OPENERS = ("", "", "we love that it is simple: ", "what you get: ", "good to know: ")
_TITLE_TAILS = ("", "", "", " pack of one", " new arrival", " by the maker")


def write_text(
    product_type: str,
    told: Mapping[str, str],
    seed: int,
    distractor: tuple[str, str] | None = None,
) -> dict[str, str | list[str]]:
    """Writes one product's title, bullets and description.

    Args:
      product_type: one of `schema.PRODUCT_TYPES`.
      told: the values to tell, each exactly once, by attribute (synthetic ones included).
      seed: decides wording, order and place.
      distractor: (attribute, value) to be told of some other product.

    Returns:
      {"title": str, "bullets": list of str, "description": str}.
    """
    rng = random.Random(seed)
    names = list(told)
    rng.shuffle(names)
    in_title = [n for n in names if n in _TITLE and rng.random() < 0.3][:2]
    title = " ".join([rng.choice(BRANDS), *(told[n] for n in in_title), product_type])
    title += rng.choice(_TITLE_TAILS)

    bullets, sentences = [], []
    for name in names:
        if name in in_title:
            continue
        phrase = _phrase(name, told[name], rng)
        (bullets if rng.random() < 0.55 else sentences).append(phrase)
    bullets = _pairs(bullets, rng)
    fillers = rng.sample(_FILLERS, 2)
    if distractor is not None:
        fillers[0] = rng.choice(_DISTRACTORS).format(
            value=distractor[1],
            other=rng.choice([kind for kind in schema.PRODUCT_TYPES if kind != product_type]),
        )
    (bullets if rng.random() < 0.4 else sentences).append(fillers[0])
    sentences.append(fillers[1])
    rng.shuffle(bullets)
    rng.shuffle(sentences)
    description = rng.choice(_OPENERS) + ". ".join(_pairs(sentences, rng)) + "."
    return {"title": title, "bullets": bullets, "description": description}


def _phrase(name: str, value: str, rng: random.Random) -> str:
    """One way to tell a value; synthetic attributes must name themselves."""
    ways = _GENERIC[:3] if name not in _PHRASES else (*_GENERIC, *_PHRASES[name] * 2)
    return rng.choice(ways).format(name=name, value=value)


def _pairs(phrases: list[str], rng: random.Random) -> list[str]:
    """Joins some neighbours with a comma, so that a bullet may hold one phrase or two."""
    joined: list[str] = []
    merged = False
    for phrase in phrases:
        if joined and not merged and rng.random() < 0.35:
            joined[-1] += ", " + phrase
            merged = True
        else:
            joined.append(phrase)
            merged = False
    return joined
