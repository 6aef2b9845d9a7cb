from moemoe_jax.parallel.folding import fold


def names(*paths):
    return [(path, count) for path, count, _ in fold((path, "") for path in paths)]


def test_paths_that_differ_in_their_last_number_are_one_row():
    assert names("a/0/w", "a/1/w", "a/2/w", "a/3/v") == [("a/{0..2}/w", 3), ("a/3/v", 1)]
    assert names("a/1", "a/3", "a/5") == [("a/{1..5..2}", 3)]
    assert names("0/w", "1/w") == [("{0,1}/w", 2)]
    assert names("a/0/w", "a/1/w", "a/4/w") == [("a/{0,1,4}/w", 3)]
    # As text, 10 comes before 2.
    assert names(*(f"a/{n}" for n in sorted(map(str, range(12))))) == [("a/{0..11}", 12)]


def test_numbers_before_the_last_or_in_a_word_are_no_layers():
    assert names("a/0/b/0", "a/1/b/0") == [("a/0/b/0", 1), ("a/1/b/0", 1)]
    assert names("wi_0/w", "wi_1/w") == [("wi_0/w", 1), ("wi_1/w", 1)]
    assert names("a", "b/w") == [("a", 1), ("b/w", 1)]


def test_what_is_told_must_be_the_same():
    rows = [("a/0", "x"), ("a/1", "y"), ("b", "x"), ("a/2", "x")]
    assert fold(rows) == [("a/{0,2}", 2, "x"), ("a/1", 1, "y"), ("b", 1, "x")]
