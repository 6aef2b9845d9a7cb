"""Batches of random products and questions, in the form that `data.batching.collate` gives them.

Shapes: P products, Q questions a product, U distinct questions, K tokens of a text, J of a
question, L answer tokens, S image side.
"""

import numpy as np

from moemoe_jax.experiment import ExperimentConfig

_EOS = 1


def random_batch(config: ExperimentConfig) -> dict:
    """P products with Q different questions each; every source and every question is there.

    Texts have K / 2 to K tokens, questions 3 to J and answers 2 to L, the last of which is </s>.
    """
    rng = np.random.default_rng(0)
    data, vocabulary = config.data, config.model.text.vocab_size
    products, questions = data.products_per_batch, data.questions_per_product
    distinct = max(data.distinct_questions, questions)

    def ids(rows: int, width: int, least: int, most: int) -> np.ndarray:
        tokens = rng.integers(2, vocabulary, (rows, width)).astype(np.int32)
        for row, end in zip(tokens, rng.integers(least, most + 1, rows), strict=True):
            row[end - 1], row[end:] = _EOS, 0
        return tokens

    length, side = data.text_length, data.image_size
    answers = ids(products * questions, data.answer_length, 2, data.answer_length)
    index = [rng.permutation(distinct)[:questions] for _ in range(products)]
    sources = {
        source.name: ids(products, length, length // 2, length)
        if source.kind == "text"
        else rng.integers(0, 256, (products, side, side, 3)).astype(np.uint8)
        for source in data.sources
    }
    return {
        "question_ids": ids(distinct, data.question_tokens, 3, data.question_tokens),
        "question_index": np.stack(index).astype(np.int32),
        "question_valid": np.ones((products, questions), bool),
        "answer_ids": answers.reshape(products, questions, -1),
        "sources": sources,
        "source_valid": {source.name: np.ones(products, bool) for source in data.sources},
    }
