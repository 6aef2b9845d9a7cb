"""From a record to the questions asked about it."""

from collections.abc import Mapping, Sequence
import dataclasses

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.records import Record


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One question about one product.

    Attributes:
      record_id: the record's id.
      attribute: the attribute asked for; None for a question that the record spells out itself.
      question: the question's text.
      answers: accepted answers, the one to train on first; () where the product is known to have
        none; None where nobody said, so that the question can be asked but not marked.
      null: True where the product is known to have no answer.
      evidence: which source shows the answer ("image", "text", "both", "none"), if known.
      product_type: the record's product type, if known.
    """

    record_id: str
    attribute: str | None
    question: str
    answers: tuple[str, ...] | None
    null: bool = False
    evidence: str | None = None
    product_type: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether the answer, or that there is none, is known."""
        return self.answers is not None


def question_text(
    attribute: str, template: str = "{attribute}", templates: Mapping[str, str] | None = None
) -> str:
    """Returns the question that asks for `attribute`, by its own template where it has one."""
    return (templates or {}).get(attribute, template).format(attribute=attribute)


def examples_of(
    record: Record, config: DataConfig, *, ask: Sequence[str] = (), notes: Notes | None = None
) -> tuple[Example, ...]:
    """Lists the questions about `record`: its attributes in order, then its own questions.

    Args:
      record: a product.
      config: templates, attributes to ask, and what to do with products known to have no answer.
      ask: attributes to ask even where the record does not say anything about them.
      notes: counts the questions left out.

    Returns:
      The examples. Empty values count as unknown, so they are asked only if `ask` says so.
    """
    wanted = set(config.attributes)
    names = [name for name in record.attributes if not wanted or name in wanted]
    examples = []
    for name in dict.fromkeys((*names, *ask)):
        null = name in record.attributes and record.attributes[name] is None
        answers = () if null else _answers(record.accepted(name))
        if null and config.null_answers == "skip":
            _count(notes, "questions without an answer skipped")
            null, answers = False, None
        elif answers is None and name in record.attributes:
            _count(notes, "attributes with an empty value skipped")
        if answers is None and name not in ask:
            continue
        question = question_text(name, config.question_template, config.question_templates)
        evidence = record.evidence.get(name)
        examples.append(
            Example(record.id, name, question, answers, null, evidence, record.product_type)
        )
    for question in record.questions:
        answers = _answers(question.answers)
        null = answers is None and bool(question.answers)
        if not question.question.strip():
            _count(notes, "empty questions skipped")
        elif null and config.null_answers == "skip":
            _count(notes, "questions without an answer skipped")
        else:
            answers = () if null else answers
            text = question.question
            examples.append(
                Example(record.id, None, text, answers, null, product_type=record.product_type)
            )
    return tuple(examples)


def _answers(values: Sequence[str | None]) -> tuple[str, ...] | None:
    """Returns the answers that hold text, each once, or None if none does."""
    kept = tuple(dict.fromkeys(value.strip() for value in values if value and value.strip()))
    return kept or None


def _count(notes: Notes | None, event: str) -> None:
    if notes is not None:
        notes.add(event)
