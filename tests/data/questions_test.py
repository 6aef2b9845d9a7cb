from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.questions import examples_of, question_text
from moemoe_jax.data.records import Question, Record

RECORD = Record(
    id="7",
    sources={"title": "Blue shirt"},
    product_type="shirt",
    attributes={"colour": "blue", "sleeve": None, "brand": "  "},
    alternatives={"colour": ("blue", "navy")},
    questions=(
        Question("Is it new?", ("yes",)),
        Question("Its price?", ()),
        Question("Its warranty?", (None,)),
        Question("  "),
    ),
    evidence={"colour": "both"},
)


def test_templates():
    assert question_text("colour") == "colour"
    templates = {"fit": "How does it fit?"}
    assert question_text("colour", "What {attribute}?", templates) == "What colour?"
    assert question_text("fit", "What {attribute}?", templates) == "How does it fit?"


def test_attributes_come_first_then_the_records_own_questions():
    notes = Notes()
    examples = examples_of(RECORD, DataConfig(), notes=notes)
    assert [(e.attribute, e.question, e.answers, e.null) for e in examples] == [
        ("colour", "colour", ("blue", "navy"), False),
        ("sleeve", "sleeve", (), True),
        (None, "Is it new?", ("yes",), False),
        (None, "Its price?", None, False),
        (None, "Its warranty?", (), True),
    ]
    assert examples[0].evidence == "both"
    assert {e.record_id for e in examples} == {"7"}
    assert {e.product_type for e in examples} == {"shirt"}
    assert [e.labelled for e in examples] == [True, True, True, False, True]
    assert notes.counts() == {
        "attributes with an empty value skipped": 1,
        "empty questions skipped": 1,
    }


def test_products_known_to_have_no_answer_can_be_skipped_but_are_counted():
    notes = Notes()
    examples = examples_of(RECORD, DataConfig(null_answers="skip"), notes=notes)
    assert [e.question for e in examples] == ["colour", "Is it new?", "Its price?"]
    assert notes.counts()["questions without an answer skipped"] == 2


def test_a_choice_of_attributes_and_attributes_to_ask_anyway():
    config = DataConfig(attributes=("sleeve",))
    examples = examples_of(RECORD, config, ask=("brand", "fit"))
    assert [(e.attribute, e.answers) for e in examples[:3]] == [
        ("sleeve", ()),
        ("brand", None),
        ("fit", None),
    ]
