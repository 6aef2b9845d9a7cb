"""Products to make batches of, and the two ways of making them, with small settings."""

import io

import numpy as np
from PIL import Image

from moemoe_jax.data.config import AugmentConfig, DataConfig
from moemoe_jax.data.eval_batches import eval_batches
from moemoe_jax.data.records import Record
from moemoe_jax.data.train_batches import train_batches

COLOURS = ("red", "blue", "green", "black")


def png(seed=0, size=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class ListSource:
    """Records in a list."""

    splits = ()

    def __init__(self, records, name="list"):
        self.records, self.name = list(records), name

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def product(number, **changes):
    colour = COLOURS[number % 4]
    fields = {
        "id": f"p{number}",
        "sources": {"title": f"{colour} shirt number {number}", "image": png(number)},
        "product_type": "shirt",
        "attributes": {"colour": colour, "sleeve": None, "size": str(number), "fit": "slim"},
    }
    return Record(**{**fields, **changes})


def products(count=10):
    return ListSource(product(number) for number in range(count))


def make_config(**changes):
    defaults = {
        "text_length": 60,
        "answer_length": 8,
        "questions_per_product": 3,
        "products_per_batch": 4,
        "image_size": 16,
        "threads": 0,
        "max_reject_fraction": 1.0,
    }
    return DataConfig(**{**defaults, **changes})


AUGMENT = AugmentConfig(
    flip=True, crop_scale_min=0.5, brightness=0.2, contrast=0.2, word_dropout=0.2,
    hide_probability=0.3,
)  # fmt: skip


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def train(tokenizer, *, source=None, seed=0, start_step=0, rows=None, **changes):
    batches = train_batches(
        source or products(), tokenizer, make_config(**changes), seed, rows=rows
    )
    batches.set_state(batches.get_state() | {"step": start_step})
    return batches


def evaluate(tokenizer, source=None, remove=(), rows=None, one_table=False, **changes):
    source = source or products()
    config = make_config(**changes)
    return eval_batches(source, tokenizer, config, remove, rows=rows, one_table=one_table)


def asked(tokenizer, batch):
    """The (question, answer) texts of a batch, by row."""
    texts = []
    for p, q in zip(*np.nonzero(batch["question_valid"]), strict=True):
        question = tokenizer.decode(batch["question_ids"][batch["question_index"][p, q]])
        texts.append((int(p), question, tokenizer.decode(batch["answer_ids"][p, q])))
    return texts


def contexts(tokenizer, batch):
    return [tokenizer.decode(row) for row in batch["sources"]["text"]]
