"""Settings are compared by dotted name, as they would be read back from JSON."""

from __future__ import annotations

from ssmke.differences import differences, flatten


def test_nested_names_are_dotted_and_empty_mappings_stay() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}


def test_tuples_equal_the_lists_that_json_makes_of_them() -> None:
    assert differences({"mean": [0.5, 0.5]}, {"mean": (0.5, 0.5)}) == []


def test_what_is_missing_on_either_side_is_named() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": 4}) == [
        ("a", 1, None),
        ("b.c", 2, 3),
        ("d", None, 4),
    ]
