"""Answers to make reports of."""

import numpy as np

from moemoe_jax.evaluation.answers import ScoredAnswer


def some_answers(name: str = "color", count: int = 40) -> list[ScoredAnswer]:
    rng = np.random.default_rng(0)
    return [
        ScoredAnswer(
            f"{name}{i}",
            name,
            name,
            name,
            float(c),
            {"image": 0.75, name: 0.25},
            name,
            calibrated=float(c) / 2,
            golds=(name if rng.uniform() < c else "other",),
            evidence=("image", "text")[i % 2],
            product_type=name,
        )
        for i, c in enumerate(rng.uniform(0.3, 1.0, count))
    ]
