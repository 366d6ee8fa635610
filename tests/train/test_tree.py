"""The parameter tree and its rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax import tree

KEY = st.text(alphabet="abc_0", min_size=1, max_size=3)
TREES = st.recursive(
    st.dictionaries(KEY, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(KEY, inner | st.integers(), min_size=1, max_size=3),
    max_leaves=12,
)


@given(TREES)
def test_unflatten_inverts_flatten_in_order(nested):
    flat = tree.flatten(nested)
    again = tree.unflatten(flat)
    assert again == nested
    assert list(tree.flatten(again)) == list(flat)
    assert not any(isinstance(leaf, dict) for leaf in flat.values())


@pytest.mark.parametrize(
    ("nested", "message"),
    [({"a": {1: 2}}, "key 1"), ({"a/b": 1}, "a/b"), ({"a": {"": 1}}, "may not be empty"), ({"a": {"b": {}}}, "'a/b'")],
)
def test_flatten_refuses_what_would_not_come_back(nested, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tree.flatten(nested)


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"a": {"x": 1}, "a/b": 2}])
def test_unflatten_refuses_a_path_through_a_leaf(flat):
    with pytest.raises(ValueError, match="'a"):
        tree.unflatten(flat)


def test_first_matching_rule_wins():
    rules = [("norm", ".*/scale"), ("head", "head/.*"), ("rest", ".*")]
    assert tree.match_rules(rules, ["head/scale", "head/kernel", "body/kernel"]) == {
        "head/scale": "norm",
        "head/kernel": "head",
        "body/kernel": "rest",
    }


def test_rules_that_do_not_fit_are_all_listed():
    rules = [("head", "head/.*"), ("shadowed", "head/kernel"), ("typo", "haed/.*")]
    with pytest.raises(ValueError, match="no rule matches") as error:
        tree.match_rules(rules, ["head/kernel", "body/kernel", "heads/kernel"])
    for expected in ("body/kernel", "heads/kernel", "shadowed: 'head/kernel'", "typo: 'haed/.*'"):
        assert expected in str(error.value)
    assert "head: " not in str(error.value)


def test_select_matches_whole_paths_and_names_idle_patterns():
    paths = ["body/kernel", "body/bias", "head/kernel"]
    assert tree.select(["body/.*", ".*/bias"], paths, "freeze") == {"body/kernel", "body/bias"}
    with pytest.raises(ValueError, match="freeze: 'body' match") as error:
        tree.select(["body", "head/.*"], paths, "freeze")
    assert "'body/.*'" in str(error.value)
    with pytest.raises(ValueError, match="not a regular expression"):
        tree.select(["("], paths, "freeze")
