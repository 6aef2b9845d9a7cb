"""What the catalogue is made of: 30 product types and 38 attributes (MoEMoE, appendix B).

Every attribute has a few values. No value, as a run of words, occurs in another one or in the name
of an attribute or a product type, so that "the text tells this value" is a plain word search.
`DRAWABLE` attributes can be shown in the image; the others can be told by the text only.
"""

PRODUCT_TYPES = (
    "apparel belt", "apparel gloves", "blazer", "bra", "choli", "coat", "dress", "hat", "kurta",
    "necktie", "nightgown nightshirt", "overalls", "pajamas", "pants", "saree", "scarf", "shirt",
    "shorts", "skirt", "sleepwear", "socks", "suit", "sweater", "sweatshirt", "swimwear", "tights",
    "track suit", "tunic", "undergarment slip", "underpants",
)  # fmt: skip

VALUES: dict[str, tuple[str, ...]] = {
    "age range description": ("adult", "teen", "toddler", "infant"),
    "belt style": ("braided", "reversible", "webbing", "sash", "cinch"),
    "bottom style": ("flared", "tapered", "bootcut", "cuffed", "straight leg"),
    "care instructions": ("machine wash", "hand wash", "dry clean", "spot clean"),
    "closure type": ("button", "zipper", "lace up", "toggle", "ribbon tie"),
    "collar style": (
        "spread collar", "mandarin collar", "peter pan collar", "shawl collar", "ruffle collar",
    ),
    "collection": ("heritage", "studio", "archive", "signature", "capsule"),
    "color": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black"),
    "cup size": ("a cup", "b cup", "c cup", "d cup"),
    "department": ("womens", "mens", "unisex", "girls", "boys"),
    "design name": ("aurora", "meridian", "willow", "harbor", "ember"),
    "fabric type": ("jersey", "chiffon", "fleece", "georgette", "satin", "denim"),
    "fabric wash": ("stonewashed", "acid washed", "enzyme washed", "garment dyed"),
    "finish type": ("matte", "glossy", "brushed", "coated", "distressed"),
    "fit type": ("slim", "relaxed", "regular", "oversized"),
    "front style": ("pleated", "flat front", "ruched", "double breasted", "open front"),
    "item length description": ("thigh length", "knee length", "calf length", "floor length"),
    "item styling": ("vintage", "modern", "minimalist", "preppy", "rugged"),
    "lining description": ("unlined", "fully lined", "half lined", "mesh lined"),
    "material": ("cotton", "wool", "linen", "silk", "polyester", "bamboo"),
    "neck style": ("v neck", "round neck", "square neck", "boat neck", "turtle neck"),
    "occasion type": ("casual", "formal", "wedding", "party", "office"),
    "outer material": ("leather", "suede", "nylon", "canvas", "velvet"),
    "pattern type": ("striped", "pinstriped", "checked", "dotted", "zigzag", "floral"),
    "pocket description": ("patch pocket", "flap pocket", "zip pocket", "pouch pocket"),
    "rise style": ("low rise", "mid rise", "high rise"),
    "seasons": ("summer", "winter", "spring", "autumn"),
    "sleeve type": ("sleeveless", "short sleeve", "long sleeve", "puff sleeve", "bell sleeve"),
    "sport type": ("running", "yoga", "cycling", "tennis", "hiking"),
    "strap type": (
        "spaghetti strap", "wide strap", "halter strap", "cross strap", "one shoulder strap",
    ),
    "style": ("bohemian", "ethnic", "western", "streetwear", "gothic"),
    "subject character": ("unicorn", "robot", "panda", "dinosaur", "pirate"),
    "theme": ("nautical", "space", "jungle", "music", "christmas"),
    "toe style": ("open toe", "capped toe", "split toe", "five finger toe"),
    "top style": ("camisole", "wrap top", "peplum", "crop top", "tank top"),
    "underwire type": ("underwired", "wireless", "demi wired", "flexi wired"),
    "waist style": ("elastic waist", "drawstring waist", "belted waist", "paperbag waist"),
    "weave type": ("twill", "plain weave", "herringbone", "jacquard", "oxford"),
}  # fmt: skip

DRAWABLE = frozenset(
    {
        "closure type", "collar style", "color", "item length description", "neck style",
        "pattern type", "pocket description", "rise style", "sleeve type", "strap type",
        "toe style", "waist style",
    }
)  # fmt: skip

# What is asked of each product type, beside color and pattern type, which every type has.
_ASKED = {
    "apparel belt": "belt style, material, finish type, department, age range description,"
    " occasion type",
    "apparel gloves": "material, outer material, lining description, seasons, sport type,"
    " department",
    "blazer": "sleeve type, collar style, closure type, pocket description, fit type, front style,"
    " lining description, occasion type, weave type, care instructions",
    "bra": "strap type, cup size, underwire type, material, care instructions, collection",
    "choli": "sleeve type, neck style, fabric type, occasion type, style, design name",
    "coat": "sleeve type, collar style, closure type, pocket description, item length description,"
    " outer material, lining description, seasons, front style, belt style",
    "dress": "sleeve type, neck style, waist style, item length description, fabric type,"
    " occasion type, style, theme, care instructions",
    "hat": "material, style, seasons, sport type, subject character, age range description",
    "kurta": "sleeve type, collar style, closure type, item length description, fabric type,"
    " occasion type, style, design name, department",
    "necktie": "material, weave type, finish type, occasion type, design name, collection",
    "nightgown nightshirt": "strap type, item length description, fabric type, care instructions,"
    " subject character, collection",
    "overalls": "strap type, pocket description, item length description, fabric wash, material,"
    " fit type, age range description",
    "pajamas": "waist style, rise style, item length description, bottom style, fabric type,"
    " subject character, care instructions",
    "pants": "waist style, rise style, pocket description, item length description, bottom style,"
    " fit type, fabric wash, front style, department",
    "saree": "sleeve type, neck style, fabric type, weave type, occasion type, design name,"
    " collection",
    "scarf": "material, weave type, seasons, theme, finish type",
    "shirt": "sleeve type, collar style, closure type, pocket description, fit type, material,"
    " weave type, care instructions, occasion type, department",
    "shorts": "waist style, rise style, pocket description, fit type, sport type, fabric wash,"
    " age range description",
    "skirt": "waist style, rise style, item length description, fabric type, item styling, style,"
    " front style",
    "sleepwear": "sleeve type, collar style, closure type, fabric type, top style, bottom style,"
    " subject character, theme",
    "socks": "toe style, material, sport type, department, subject character, item styling",
    "suit": "sleeve type, collar style, closure type, pocket description, fit type,"
    " outer material, lining description, occasion type, item styling",
    "sweater": "sleeve type, neck style, closure type, material, seasons, fit type,"
    " care instructions, theme",
    "sweatshirt": "sleeve type, neck style, pocket description, fabric type, sport type,"
    " subject character, theme, age range description",
    "swimwear": "strap type, cup size, underwire type, lining description, top style,"
    " bottom style, sport type",
    "tights": "toe style, finish type, material, sport type, item styling, department",
    "track suit": "sleeve type, collar style, closure type, pocket description, sport type,"
    " fabric type, top style, bottom style",
    "tunic": "sleeve type, neck style, item length description, material, style, item styling,"
    " design name, care instructions",
    "undergarment slip": "strap type, item length description, cup size, finish type, fabric type,"
    " underwire type, collection",
    "underpants": "waist style, rise style, material, department, collection, fit type",
}

ASKED: dict[str, tuple[str, ...]] = {
    kind: ("color", "pattern type", *names.split(", ")) for kind, names in _ASKED.items()
}

# The vocabulary that all synthetic attributes ("spec 0421") share: only the question tells which
# of the specs in a text is meant.
EXTRA_VALUES = (
    "alpha", "bravo", "delta", "echo", "foxtrot", "gamma", "hotel", "india", "juliet", "kilo",
    "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform",
    "victor", "whiskey", "yankee", "zulu",
)  # fmt: skip


def extra_name(number: int) -> str:
    """The name of a synthetic attribute: `extra_name(421)` is "spec 0421"."""
    return f"spec {number:04d}"


def values_of(attribute: str) -> tuple[str, ...]:
    """All values of an attribute of the schema, or of a synthetic one ("spec 0421").

    Raises:
      KeyError: no such attribute.
    """
    return EXTRA_VALUES if attribute.startswith("spec ") else VALUES[attribute]
