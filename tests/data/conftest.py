import pytest

from moemoe_jax.data.examples import corpus
from moemoe_jax.data.tokenizer import Tokenizer
from tests.data.products import make_config, products


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(corpus(products(), make_config()), 600)
