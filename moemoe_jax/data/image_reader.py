"""The images of records as pixels, each decoded once and then kept in memory.

Shapes: S image side.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from moemoe_jax.data.cache import BoundedCache
from moemoe_jax.data.config import DataConfig, SourceConfig
from moemoe_jax.data.examples import source_images
from moemoe_jax.data.images import ImageError, augment_image, load_image
from moemoe_jax.data.lazy import LazyRecord
from moemoe_jax.data.records import Record

# Encoded bytes of an image that decodes in about a millisecond.
_SMALL_IMAGE = 32_768


class ImageReader:
    """Reads images; safe to share among threads."""

    def __init__(self, config: DataConfig, reject: Callable[[Record, int, str, Path | None], None]):
        """Keeps its arguments.

        Args:
          config: the size of images, how they are augmented, and how many are kept.
          reject: writes down an image that cannot be read: its record, the number of that, the
            reason and the file, None for one that the record holds in itself.
        """
        self._config, self._reject = config, reject
        self._kept = BoundedCache(config.cache_images_mib)
        self._failed: set[tuple[int, str]] = set()

    def prime(self, lazy: LazyRecord) -> None:
        """Decodes small images that the record holds in itself.

        Such a record (drawn by a program, or read from a large file) would have to be made a
        second time just for them.
        """
        for source in self._config.sources:
            images = source_images(lazy.record, source.fields) if source.kind == "image" else []
            if images and isinstance(images[0], bytes) and len(images[0]) <= _SMALL_IMAGE:
                self.read(lazy, source)

    def read(
        self, lazy: LazyRecord, source: SourceConfig, rng: np.random.Generator | None = None
    ) -> np.ndarray | None:
        """Returns the first image that can be read, uint8 [S, S, 3], or None.

        Args:
          lazy: the record.
          source: which of its fields.
          rng: randomness for augmentation; without it there is none.
        """
        key = (lazy.index, source.name)
        pixels = self._kept.get(key)
        if pixels is None and key not in self._failed:
            pixels = self._load(lazy, source)
            if pixels is None:
                self._failed.add(key)
            else:
                self._kept.put(key, pixels, pixels.nbytes)
        if pixels is None or rng is None or not self._config.augment.changes_images:
            return pixels
        return augment_image(pixels, rng, self._config.augment)

    def _load(self, lazy: LazyRecord, source: SourceConfig) -> np.ndarray | None:
        size, limit = self._config.image_size, self._config.max_image_pixels
        for image in source_images(lazy.record, source.fields):
            try:
                return load_image(image, size, limit)
            except ImageError as error:
                file = None if isinstance(image, bytes) else image
                self._reject(lazy.record, lazy.index, str(error), file)
        return None
