import dataclasses
import json

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.metrics import evaluate, fit_thresholds
from moemoe_jax.evaluation.table import EvalConfig


def answer(attribute, said, golds, confidence, **more):
    golds = (golds,) if isinstance(golds, str) else golds
    return ScoredAnswer("p", attribute, "?", said, confidence, golds=golds, **more)


# color: 4 labelled, 3 answerable. Predictions by score: 0.9 right, 0.8 right, 0.6 wrong (there is
# no answer); one abstention that should have been "red". R@90P = 2/3 at 0.8, coverage 2/4.
# neck: 2 labelled: 0.7 wrong, 0.5 right. Precision 0, then 1/2: R@90P = 0.
ANSWERS = [
    answer("color", "Blue", "blue", 0.9, evidence="image"),
    answer("color", "red", ("crimson", "Red"), 0.8, evidence="text"),
    answer("color", "green", (), 0.6, evidence="none"),
    answer("color", None, "red", 0.9, evidence="image"),
    answer("neck", "round", "v", 0.7, evidence="image"),
    answer("neck", "v", "v", 0.5, evidence="image"),
    answer("neck", "boat", None, 1.0),
]


def test_attributes_by_hand():
    metrics = evaluate(ANSWERS)
    assert list(metrics["per_attribute"]) == ["color", "neck"]
    assert metrics["per_attribute"]["color"] == pytest.approx(
        {
            "count": 4,
            "accuracy": 2 / 4,
            "recall_at_90p": 2 / 3,
            "recall_at_95p": 2 / 3,
            "recall_at_99p": 2 / 3,
            "coverage_at_90p": 2 / 4,
            "precision_at_90p": 1.0,
            "threshold_at_90p": 0.8,
            "ece": (0.1 + 0.2 + 0.6) / 3,  # every prediction in a bin of its own
            "majority": 2 / 4,  # red, twice: as one of two golds, and alone
        }
    )
    neck = metrics["per_attribute"]["neck"]
    assert (neck["recall_at_90p"], neck["threshold_at_90p"]) == (0.0, None)
    assert (neck["precision_at_90p"], neck["coverage_at_90p"], neck["majority"]) == (None, 0, 1)


def test_top_level_by_hand():
    metrics = evaluate(ANSWERS)
    assert metrics["accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert metrics["recall_at_90p"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["coverage_at_90p"] == pytest.approx((2 / 4 + 0) / 2)
    assert metrics["accuracy_micro"] == pytest.approx(3 / 6)
    assert metrics["accuracy_answerable"] == pytest.approx(3 / 5)
    assert metrics["accuracy_unanswerable"] == 0.0
    # Scores 0.9 0.8 0.7 0.6 0.5, right right wrong wrong right: risks 0 0 1/3 2/4 2/5.
    assert metrics["aurc"] == pytest.approx((1 / 3 + 2 / 4 + 2 / 5) / 5)
    assert metrics["counts"] == {
        "answers": 7,
        "labelled": 6,
        "unlabelled": 1,
        "answerable": 5,
        "unanswerable": 1,
        "predictions": 5,
        "abstentions": 1,
        "correct": 3,
        "attributes": 2,
    }


def test_evidence_by_hand():
    # image: 4 answers, 2 right; of its 4 answerable only the blue one is published, and right.
    by_evidence = evaluate(ANSWERS)["by_evidence"]
    assert list(by_evidence) == ["image", "text", "none"]
    image = by_evidence["image"]
    assert (image["count"], image["accuracy"], image["recall_at_90p"]) == (4, 0.5, 0.25)
    assert (image["coverage_at_90p"], image["precision_at_90p"]) == (0.25, 1.0)
    assert by_evidence["none"]["recall_at_90p"] is None


def test_a_right_abstention_counts_for_accuracy_but_not_for_recall():
    metrics = evaluate([answer("a", "<none>", (), 0.9), answer("a", "x", "x", 0.5)])
    row = metrics["per_attribute"]["a"]
    assert (row["accuracy"], row["recall_at_90p"], row["coverage_at_90p"]) == (1.0, 1.0, 0.5)
    assert metrics["accuracy_unanswerable"] == 1.0
    config = EvalConfig(recall_over="labelled")
    assert evaluate([answer("a", None, (), 0.9), answer("a", "x", "x", 0.5)], config)[
        "recall_at_90p"
    ] == pytest.approx(0.5)


def test_an_attribute_without_answerable_questions_has_no_recall():
    metrics = evaluate([answer("a", "x", "x", 0.5), answer("b", "y", (), 0.5)])
    assert metrics["per_attribute"]["b"]["recall_at_90p"] is None
    assert metrics["recall_at_90p"] == 1.0
    assert metrics["accuracy"] == 0.5


def test_top_k_takes_the_largest_or_the_best():
    answers = [answer("big", "x", "y", 0.5)] * 3
    answers += [answer("middle", "x", "x", 0.5)] * 2 + [answer("small", "x", "x", 0.5)]
    by_count = evaluate(answers, EvalConfig(topk=(1, 2)))["top_k"]
    assert [by_count[k]["accuracy"] for k in ("1", "2", "all")] == [0.0, 0.5, pytest.approx(2 / 3)]
    by_value = evaluate(answers, EvalConfig(topk=(1, 2), topk_by="value"))["top_k"]
    assert [by_value[k]["recall_at_90p"] for k in ("1", "2")] == [1.0, 1.0]
    assert evaluate(answers)["top_k"]["15"]["attributes"] == 3


def test_groups_can_be_attributes_of_product_types():
    answers = [
        answer("color", "x", "x", 0.5, product_type="Kurta"),
        answer("color", "x", "y", 0.5, product_type="Shirt"),
        answer("color", "x", "x", 0.5),
    ]
    metrics = evaluate(answers, EvalConfig(group_by="product_type_attribute"))
    assert list(metrics["per_attribute"]) == ["? / color", "Kurta / color", "Shirt / color"]
    assert metrics["by_product_type"]["Kurta"]["all"]["accuracy"] == 1.0
    assert metrics["by_product_type"]["Shirt"]["all"]["accuracy"] == 0.0


def test_thresholds_of_validation_are_used_as_they_are():
    config = EvalConfig(threshold_from="val")
    thresholds = fit_thresholds([answer("color", "x", "x", 0.6)])
    assert thresholds == {"color": {"90": 0.6, "95": 0.6, "99": 0.6}}
    metrics = evaluate(ANSWERS, config, json.loads(json.dumps(thresholds)))
    color = metrics["per_attribute"]["color"]
    # From 0.6 up all three predictions go out, one of them wrong: precision misses 90 %.
    assert (color["recall_at_90p"], color["coverage_at_90p"]) == pytest.approx((2 / 3, 3 / 4))
    assert color["precision_at_90p"] == pytest.approx(2 / 3)
    assert metrics["per_attribute"]["neck"]["recall_at_90p"] == 0.0  # never seen: not published


@pytest.mark.parametrize("threshold_from", ["test", "val"])
def test_both_ways_to_choose_thresholds_are_told_whichever_the_table_is_of(threshold_from):
    thresholds = {"color": {"90": 0.6}, "neck": {"90": 0.5}}
    metrics = evaluate(ANSWERS, EvalConfig(threshold_from=threshold_from), thresholds)
    # Chosen on these: of color 2 of 4 go out (recall 2/3), of neck none; both are right.
    # On validation: of color 3 of 4 with 2 right, of neck 2 of 2 with 1 right (recall 1/2).
    test, val = ({"recall_at_90p": 2 / 3 / 2, "coverage_at_90p": 1 / 4, "precision_at_90p": 1.0},
                 {"recall_at_90p": (2 / 3 + 1 / 2) / 2, "coverage_at_90p": (3 / 4 + 1) / 2,
                  "precision_at_90p": 3 / 5})  # fmt: skip
    assert metrics["by_threshold"]["test"] == pytest.approx(test)
    assert metrics["by_threshold"]["val"] == pytest.approx(val)
    chosen = metrics["by_threshold"][threshold_from]
    for name in ("recall_at_90p", "coverage_at_90p"):
        assert chosen[name] == pytest.approx(metrics[name])
    assert list(evaluate(ANSWERS)["by_threshold"]) == ["test"]


def test_what_none_is_published_of_has_no_precision():
    config = EvalConfig(recall_over="labelled")
    given = [answer("a", "x", (), 0.5), answer("b", "x", "x", 0.5)]
    metrics = evaluate(given, config, {"a": {"90": None}})["by_threshold"]
    assert metrics["val"] == {
        "recall_at_90p": 0.0, "coverage_at_90p": 0.0, "precision_at_90p": None
    }  # fmt: skip
    # Over the answerable only, the group without any has no recall: 1 of 1, and (0 + 1) / 2.
    assert metrics["test"]["recall_at_90p"] == 0.5
    assert evaluate(given)["by_threshold"]["test"]["recall_at_90p"] == 1.0


def test_the_safe_bound_publishes_less():
    answers = [answer("a", "x", "x", 0.5)] * 28
    assert evaluate(answers)["recall_at_90p"] == 1.0
    assert evaluate(answers, EvalConfig(bound="clopper_pearson"))["recall_at_90p"] == 0.0


def test_calibrated_scores_rank_where_asked():
    config = EvalConfig(score="calibrated")
    answers = [dataclasses.replace(a, calibrated=0.25) for a in ANSWERS]
    assert evaluate(answers, config)["per_attribute"]["color"]["recall_at_90p"] == 0.0
    with pytest.raises(UserError, match="answer 'p' to 'color' has no calibrated confidence"):
        evaluate(ANSWERS, config)


@pytest.mark.parametrize("answers", [[], [answer("a", "x", None, 0.5)]])
def test_without_labels_nothing_is_defined(answers):
    metrics = evaluate(answers)
    assert metrics["accuracy"] is metrics["recall_at_90p"] is metrics["ece"] is None
    assert metrics["per_attribute"] == metrics["by_evidence"] == {}
    json.dumps(metrics, allow_nan=False)


def test_metrics_are_json_and_do_not_depend_on_the_order_of_answers():
    metrics = evaluate(ANSWERS)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert evaluate(iter(ANSWERS[::-1])) == metrics


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"evaluation\.topk_by is 'size': choose one of count"):
        EvalConfig(topk_by="size")
    with pytest.raises(ValueError, match="bound_delta 0 must be between 0 and 1"):
        EvalConfig(bound_delta=0)
    with pytest.raises(ValueError, match="must be at least 1"):
        EvalConfig(topk=(0,))
    with pytest.raises(UserError, match="validation thresholds are missing: fit them"):
        evaluate(ANSWERS, EvalConfig(threshold_from="val"))
