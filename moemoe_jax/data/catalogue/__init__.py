"""The built-in catalogue: generated products whose evidence is known. See `source.py`."""

from moemoe_jax.data.catalogue.drawing import render
from moemoe_jax.data.catalogue.source import (
    CatalogueConfig,
    CatalogueSource,
    make_record,
    parse_config,
)
from moemoe_jax.data.catalogue.text import write_text

__all__ = [
    "CatalogueConfig",
    "CatalogueSource",
    "make_record",
    "parse_config",
    "render",
    "write_text",
]
