import json
import subprocess
import sys

import numpy as np
import pytest

from moemoe_jax.data.tokenizer import Tokenizer, normalise
from moemoe_jax.errors import UserError

TEXTS = [
    "Blue cotton shirt, 100% cotton, size 42",
    "Red running shoes for women, 8.5 inch",
    "Größe: XL, Farbe: grün",
    "kurta of pure silk",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 500)


@pytest.mark.parametrize(
    "text",
    [
        "red",
        "100% cotton 12.5 cm",
        "Größe grün",
        "綿 100%",  # characters that the texts lack fall back to bytes
        "👕 <none> </s> <pad> <0x41> <unk>",
        "  two\t blanks\n and \u00a0 more ",
        "cafe\u0301",
        "",
    ],
)
def test_round_trip_is_exact_on_normalised_text(tokenizer, text):
    ids, truncated = tokenizer.encode(text, 200)
    assert ids.dtype == np.int32
    assert ids[-1] == 1 and not np.isin(ids[:-1], (0, 1, 2)).any()
    assert not truncated
    assert tokenizer.decode(ids) == normalise(text)
    padded = np.concatenate([ids, np.zeros(3, np.int32)])
    assert tokenizer.decode(padded) == normalise(text)


def test_truncation_keeps_the_end_mark_and_is_told(tokenizer):
    whole, _ = tokenizer.encode("Blue cotton shirt", 100)
    assert tokenizer.encode("Blue cotton shirt", len(whole))[1] is False
    ids, truncated = tokenizer.encode("Blue cotton shirt", len(whole) - 1)
    assert truncated is True
    np.testing.assert_array_equal(ids, [*whole[: len(whole) - 2], 1])


def test_half_a_surrogate_pair_does_not_stop_it(tokenizer):
    ids, _ = tokenizer.encode("red \ud800 shirt", 50)
    assert tokenizer.decode(ids) == "red ? shirt"


def test_training_is_deterministic_and_small_texts_give_small_vocabularies():
    first, second = (Tokenizer.train(iter(TEXTS), 8000) for _ in range(2))
    assert first.vocab_size == second.vocab_size < 8000
    assert first.encode(TEXTS[0], 99)[0].tolist() == second.encode(TEXTS[0], 99)[0].tolist()
    assert Tokenizer.train(["a"], 8000).vocab_size >= 354


def test_training_refuses_no_text_and_too_few_pieces():
    with pytest.raises(UserError, match="no text to train"):
        Tokenizer.train(["", "  "], 500)
    alphabet = "".join(chr(0x4E00 + i) for i in range(400))
    with pytest.raises(UserError, match=r"400 is too small .* give at least \d+"):
        Tokenizer.train([alphabet], 400)


def test_save_and_load_give_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.vocab_size == tokenizer.vocab_size
    for text in (*TEXTS, "綿 👕"):
        assert loaded.encode(text, 40)[0].tolist() == tokenizer.encode(text, 40)[0].tolist()


def test_auto_tokenizer_reads_the_folder_with_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    for text in (*TEXTS, "綿 100% 👕"):
        ids = tokenizer.encode(text, 99)[0]
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs.decode(ids, skip_special_tokens=True) == normalise(text)


def _sentencepiece(folder, **ids):
    import sentencepiece

    with (folder / "spiece.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=out, vocab_size=80, minloglevel=2,
            hard_vocab_limit=False, pad_piece="<pad>", **ids,
        )  # fmt: skip


def test_a_sentencepiece_folder_matches_transformers(tmp_path):
    from transformers import T5Tokenizer

    _sentencepiece(tmp_path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    mine, theirs = Tokenizer.load(tmp_path), T5Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert mine.encode(text, 99)[0].tolist() == theirs(text)["input_ids"]
    ids = mine.encode(TEXTS[0], 99)[0]
    assert mine.decode(ids) == TEXTS[0]
    # What transformers writes is read as well, and so is our own copy of the model.
    theirs.save_pretrained(tmp_path / "theirs")
    mine.save(tmp_path / "mine")
    for folder in ("theirs", "mine"):
        np.testing.assert_array_equal(
            Tokenizer.load(tmp_path / folder).encode(TEXTS[0], 99)[0], ids
        )


def test_a_folder_that_is_no_t5_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)
    _sentencepiece(tmp_path, unk_id=0, bos_id=1, eos_id=2, pad_id=3)
    with pytest.raises(UserError, match="not for <pad> and </s>"):
        Tokenizer.load(tmp_path)
    for content in ("{}", "\n{oops", json.dumps({"model": {"type": "Unigram"}})):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match="cannot be read as a tokenizer") as caught:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(caught.value)


def test_importing_and_loading_leave_transformers_out(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    code = (
        "import sys; from moemoe_jax.data.tokenizer import Tokenizer; "
        "Tokenizer.load(sys.argv[1]).encode('red', 9); "
        "assert not {'transformers', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_word_that_texts_repeat_is_one_piece():
    # Each stands in a single form, between blanks: only its count says that it is a word.
    tokenizer = Tokenizer.train(["Navy Turtle Slippers", "Slippers Navy Turtle"] * 50, 500)
    assert len(tokenizer.encode("Turtle Slippers Navy", 20)[0]) == 3 + 1
    assert len(tokenizer.encode("Turtles", 20)[0]) > 1 + 1


def test_a_single_word_is_one_piece_and_comes_back():
    texts = [*TEXTS, *["<none>"] * 9]
    tokenizer = Tokenizer.train(texts, 500, single=["<none>"])
    ids, _ = tokenizer.encode("<none>", 9)
    assert len(ids) == 2 and tokenizer.decode(ids) == "<none>"
    text = "not <none> but 綿 <0x41>"
    assert tokenizer.decode(tokenizer.encode(text, 50)[0]) == text
    assert len(Tokenizer.train(texts, 500).encode("<none>", 9)[0]) > 2
