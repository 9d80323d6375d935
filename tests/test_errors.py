from ich.errors import name_some


def test_ids_are_named_three_at_most():
    assert name_some(["a", "b", "c"]) == "a, b, c"
    assert name_some(["a", "b", "c", "d"]) == "a, b, c, … (4 in all)"
    assert name_some(["a", "b", "c"], total=9) == "a, b, c, … (9 in all)"
