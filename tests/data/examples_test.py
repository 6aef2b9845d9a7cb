from pathlib import Path

from moemoe_jax.data.config import DataConfig, SourceConfig
from moemoe_jax.data.examples import context_text, corpus, has_any_source, source_images
from moemoe_jax.data.records import Question, Record

RECORD = Record(
    id="1",
    sources={"title": " Blue shirt ", "bullets": ("soft", "light"), "image": (b"a", Path("b.jpg"))},
    product_type="shirt",
    marketplace="IN",
    attributes={"colour": "blue", "sleeve": None},
    questions=(Question("Is it new?", ("yes", "sure")),),
)


def test_fields_are_joined_behind_their_names_in_the_order_given():
    fields = ("marketplace", "product_type", "title", "bullets", "description")
    expected = "marketplace: IN product type: shirt title: Blue shirt bullets: soft light"
    assert context_text(RECORD, fields) == expected


def test_a_single_field_needs_no_name_and_a_missing_one_is_empty():
    assert context_text(RECORD, ("title",)) == "Blue shirt"
    assert context_text(RECORD, ("description",)) == ""
    assert context_text(RECORD, ("image",)) == ""


def test_all_images_of_all_fields_in_order():
    assert source_images(RECORD, ("back_image", "image")) == [b"a", Path("b.jpg")]
    assert source_images(RECORD, ("title",)) == []


def test_a_record_must_have_one_of_the_sources():
    text, image = (
        SourceConfig("t", "text", ("description",)),
        SourceConfig("i", "image", ("image",)),
    )
    assert has_any_source(RECORD, (text, image))
    assert not has_any_source(RECORD, (text,))


def test_the_corpus_holds_contexts_questions_and_answers():
    class Source:
        name, splits = "s", ()

        def __len__(self):
            return 9

        def __getitem__(self, index):
            return RECORD

    texts = list(corpus(Source(), DataConfig(), limit=2))
    # The sleeve is known to have no answer, and that is something to write as well.
    assert texts[1:8] == ["colour", "blue", "sleeve", "<none>", "Is it new?", "yes", "sure"]
    assert len(texts) == 2 * 8
