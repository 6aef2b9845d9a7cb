"""Products of different sizes to one batch of fixed shapes.

A question asked of many products is in the batch once: `question_ids` is a table of the distinct
ones, and `question_index` points into it.

Shapes: P products, Q questions a product, U rows of the question table, J question tokens,
K source tokens, L answer tokens, S image side.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import Product
from moemoe_jax.data.questions import Example
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.tokenizer import EOS_ID

Batch = dict[str, np.ndarray | dict[str, np.ndarray]]


def question_rows(config: DataConfig, distinct: int) -> int:
    """U, so that no batch of these data can have more distinct questions: at most P * Q.

    Args:
      config: P and Q.
      distinct: how many different questions the data ask (or any larger number).
    """
    most = config.products_per_batch * config.questions_per_product
    return max(1, min(most, distinct))


def distinct_questions(asked: Iterable[tuple[Example, ...]]) -> list[str]:
    """The different questions of some products, in the order in which they first occur."""
    return list(dict.fromkeys(example.question for examples in asked for example in examples))


def neutral_sources(
    config: DataConfig, products: int, length: int | None = None
) -> dict[str, np.ndarray]:
    """Returns what stands where a product lacks a source, texts of `length` tokens, by default K.

    A text is a lone `</s>`, so that an encoder has one token to attend to; an image is the mean
    colour, so that its normalised pixels are about zero.
    """
    size = config.image_size
    colour = np.rint(np.asarray(config.image_mean) * 255.0).clip(0, 255).astype(np.uint8)
    sources = {}
    for source in config.sources:
        if source.kind == "image":
            sources[source.name] = np.empty((products, size, size, 3), np.uint8)
            sources[source.name][:] = colour
        else:
            sources[source.name] = np.zeros((products, length or config.text_length), np.int32)
            sources[source.name][:, 0] = EOS_ID
    return sources


def collate(
    products: Sequence[Product],
    questions: Sequence[str],
    reader: ProductReader,
    rows: int,
    length: int | None = None,
) -> Batch:
    """Puts products into a batch, or those of its products that this process makes.

    Args:
      products: P of them; one without questions is padding.
      questions: the different ones that the table has, in its order: at least those drawn for any
        product of the batch, also of those that others make, so that the table is the same on all
        processes. One that its product then lost, with the source that told it or as a reject,
        stays in it.
      reader: tokenises questions and answers.
      rows: U.
      length: tokens that texts are padded to, and none is longer than; by default K.

    Returns:
      question_ids: int32 [U, J], pad 0 behind `</s>`; unused rows are all pad.
      question_index: int32 [P, Q], row of the table; 0 where there is no question.
      question_valid: bool [P, Q].
      answer_ids: int32 [P, Q, L]; all pad where the answer is not known.
      sources: name -> int32 [P, K or `length`] or uint8 [P, S, S, 3].
      source_valid: name -> bool [P].
    """
    config = reader.config
    shape = (len(products), config.questions_per_product)
    index = np.zeros(shape, np.int32)
    valid = np.zeros(shape, np.bool_)
    answers = np.zeros((*shape, config.answer_length), np.int32)
    sources = neutral_sources(config, len(products), length)
    source_valid = {name: np.zeros(len(products), np.bool_) for name in sources}
    table = {question: row for row, question in enumerate(questions)}
    for p, product in enumerate(products):
        for q, example in enumerate(product.examples):
            index[p, q] = table[example.question]
            ids = reader.short_texts.answer_ids(example)
            answers[p, q, : len(ids)] = ids
        valid[p, : len(product.examples)] = True
        for name, value in product.sources.items():
            _fill(sources[name][p], value)
            source_valid[name][p] = True
    question_ids = np.zeros((rows, config.question_tokens), np.int32)
    for question, row in table.items():
        ids = reader.short_texts.question_ids(question)
        question_ids[row, : len(ids)] = ids
    return {
        "question_ids": question_ids,
        "question_index": index,
        "question_valid": valid,
        "answer_ids": answers,
        "sources": sources,
        "source_valid": source_valid,
    }


def _fill(row: np.ndarray, value: np.ndarray) -> None:
    if row.ndim == 1:
        row[: len(value)] = value
    else:
        row[:] = value


def text_tokens(batch: Batch) -> int:
    """The tokens that the texts of a batch are padded to; 0 where there is no text."""
    return max((x.shape[1] for x in batch["sources"].values() if x.ndim == 2), default=0)
