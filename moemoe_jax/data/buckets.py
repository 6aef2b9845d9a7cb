"""Which products make a training batch: any of an epoch, or those with texts of about one length.

A text encoder's work grows with the tokens that texts are padded to. With `data.text_buckets`, a
batch is padded to the shortest of a few lengths that holds its texts, and products are drawn a
window of batches at a time and dealt out by length, so that one long text does not make all of its
batch long. How long a product's texts can be is known of all products beforehand, so a batch and
its length are functions of (seed, step) alone, and the same for any number of processes.

What is cut off is padding. The model puts zeros in its place, so K, the question's padding and the
image's tiles are what they were. An epoch ends within a window: products of the last batches of one
epoch and the first of the next are dealt out together.

Shapes: N products, P products a batch, W batches a window, K source tokens.
"""

import functools

import grain
import numpy as np

from moemoe_jax.data.examples import Product

# Batches of a window: enough that few hold texts of two lengths, and few enough that a window is a
# small part of an epoch.
_WINDOW = 16
_MANY_ROWS = 2**56


class BatchOrder:
    """The products of every batch: `order[step]`, positions among the N, int64 [P]."""

    def __init__(self, buckets: np.ndarray, size: int, seed: int):
        """Draws nothing yet.

        Args:
          buckets: int [N], the place among the lengths of the one that holds a product's texts.
          size: P.
          seed: decides.
        """
        products = len(buckets)
        several = buckets.min() < buckets.max()
        self._buckets, self._seed = buckets, seed % 2**64
        self._window = max(1, min(_WINDOW, products // size)) if several else 1
        # As good as endless; grain's own "for ever" overflows with one product a batch.
        self._drawn = (
            grain.MapDataset.range(products)
            .shuffle(seed=seed % 2**32)
            .repeat(_MANY_ROWS // products, reseed_each_epoch=True)
            .batch(size * self._window)
        )
        self._dealt = functools.lru_cache(maxsize=8)(self._deal)

    def __len__(self) -> int:
        return len(self._drawn) * self._window

    def __getitem__(self, step: int) -> np.ndarray:
        window, place = divmod(step, self._window)
        return self._dealt(window)[place]

    def _deal(self, window: int) -> np.ndarray:
        """The batches of a window, int64 [W, P]: by length, in a random order."""
        drawn = self._drawn[window]
        if self._window == 1:
            return drawn[None]
        # Products of one length stay in the order drawn: exact lengths would bring the same ones
        # together again and again.
        by_length = drawn[np.argsort(self._buckets[drawn], kind="stable")]
        rng = np.random.default_rng((self._seed, window))
        return rng.permutation(by_length.reshape(self._window, -1))


def fits(product: Product, length: int) -> bool:
    """Whether all texts of a product have at most `length` tokens."""
    return all(len(value) <= length for value in product.sources.values() if value.ndim == 1)


def shortened(product: Product, length: int) -> Product:
    """The product with texts of at most `length` tokens, `</s>` included."""
    sources = {
        name: value
        if value.ndim > 1 or len(value) <= length
        else np.append(value[: length - 1], value[-1])
        for name, value in product.sources.items()
    }
    return Product(product.examples, sources)
