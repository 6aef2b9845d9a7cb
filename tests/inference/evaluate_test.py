import pytest

from moemoe_jax.inference.evaluate import results_name


@pytest.mark.parametrize(
    ("given", "removed", "name"),
    [
        ("", (), "test"),
        ("", ("text", "image"), "test-without-text-without-image"),
        ("../data/gold.jsonl", (), "data_gold.jsonl"),
        ("/data/gold.jsonl", ("text",), "data_gold.jsonl-without-text"),
        ("tfds:a/b", (), "tfds_a_b"),
        ("..", (), "input"),
    ],
)
def test_results_lie_in_a_folder_that_is_seen_and_under_eval(given, removed, name):
    assert results_name(given, "test", removed) == name
