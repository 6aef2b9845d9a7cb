import dataclasses
import json

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import (
    Alternative,
    ScoredAnswer,
    is_abstention,
    is_correct,
    normalise,
    read_answers,
    write_answers,
)

PLAIN = ScoredAnswer("p1", "color", "What color?", "Blue", 0.75)
FULL = ScoredAnswer(
    "p2",
    "neck",
    "¿Qué cuello?",
    None,
    0.5,
    {"title": 0.25, "image": 0.75},
    "moemoe",
    calibrated=0.4,
    golds=("V-Neck", "V Neck"),
    evidence="image",
    product_type="Shirt",
    alternatives=(Alternative("Crew", 0.25), Alternative(None, 0.125)),
)
NONE = dataclasses.replace(FULL, golds=())


def test_normalise_by_hand():
    assert normalise("  Dark\t BLUE \n") == "dark blue"
    assert normalise("Cafe\u0301") == normalise("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize(
    ("said", "golds", "correct"),
    [
        ("v  neck ", ("V-Neck", "V Neck"), True),
        ("round", ("V-Neck", "V Neck"), False),
        (None, ("V-Neck",), False),
        (None, (), True),
        ("<NONE>", (), True),
        ("", ("<none>",), True),
        ("round", (), False),
        ("round", None, False),
        (None, None, False),
    ],
)
def test_correct_is_any_gold_or_a_right_abstention(said, golds, correct):
    assert is_correct(dataclasses.replace(PLAIN, answer=said, golds=golds)) is correct


def test_the_text_of_no_answer_can_be_another():
    assert is_abstention("N/A", "n/a")
    assert not is_abstention("N/A")


@pytest.mark.parametrize("name", ["answers.jsonl", "deep/answers.parquet"])
def test_files_give_back_what_they_got(tmp_path, name):
    answers = [PLAIN, FULL, NONE]
    assert write_answers(tmp_path / name, iter(answers)) == 3
    assert list(read_answers(tmp_path / name)) == answers
    assert write_answers(tmp_path / name, []) == 0
    assert list(read_answers(tmp_path / name)) == []


def test_a_line_has_the_fields_that_readers_expect(tmp_path):
    write_answers(tmp_path / "a.jsonl", [PLAIN, NONE])
    plain, none = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert list(plain) == [
        *("id", "attribute", "question", "answer", "confidence", "source_weights", "model")
    ]
    assert none["answer"] is None
    assert none["golds"] == []
    assert none["calibrated"] == 0.4


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.jsonl"
    write_answers(path, [PLAIN])

    def failing():
        yield FULL
        raise RuntimeError("out of products")

    with pytest.raises(RuntimeError, match="out of products"):
        write_answers(path, failing())
    assert list(read_answers(path)) == [PLAIN]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "an answer lacks id"),
        ('{"id": "1", "attribute": "a"}', "lacks answer, confidence"),
        ('{"id": "1", "attribute": "a", "answer": "x", "confidence": 2}', "not in \\[0, 1\\]"),
        ('{"id": "1", "attribute": "a", "answer": "x", "confidence": NaN}', "not in \\[0, 1\\]"),
        ('{"id": "1", "attribute": "a", "answer": "x", "confidence": "high"}', "not supported"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PLAIN.to_json()) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:3: not an answer \(.*{reason}") as caught:
        list(read_answers(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_parquet_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(read_answers(tmp_path / "none.jsonl"))
    (tmp_path / "a.parquet").write_text("hello, this is text")
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file"):
        list(read_answers(tmp_path / "a.parquet"))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="confidence nan of answer 'p1' to 'color'"):
        dataclasses.replace(PLAIN, confidence=float("nan"))
    with pytest.raises(ValueError, match=r"calibrated 1\.5 of answer"):
        dataclasses.replace(PLAIN, calibrated=1.5)
    with pytest.raises(ValueError, match="golds of answer 'p1' is a string"):
        dataclasses.replace(PLAIN, golds="blue")
