"""The page of features counts what tests show, and a test that is gone is noticed."""

import gen_features

FEATURES = gen_features.read_features(gen_features.ROOT / "docs/features.toml")


def test_every_named_test_exists():
    assert gen_features.mistakes(FEATURES, gen_features.ROOT) == []


def test_a_missing_test_or_feature_is_noticed(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_there():\n    assert 1\n\n\ndef helper():\n    pass\n")
    features = {number: {"name": "x"} for number in range(1, 51)}
    features[1] = {"name": "x", "tests": ["test_a.py::test_there"]}
    assert gen_features.mistakes(features, tmp_path) == []
    features[2] = {"name": "x", "tests": ["test_a.py::test_gone", "test_a.py::helper", "test_b.py::test_there"]}
    features[3] = {"name": "x", "part": "but no test"}
    features[51] = {"name": "x", "tets": []}
    del features[4]
    found = gen_features.mistakes(features, tmp_path)
    assert len(found) == 7 and sum("there is no test" in line for line in found) == 3


def test_the_page_counts_marks():
    text = gen_features.features_text({1: {"name": "a", "tests": ["t::u"]}, 2: {"name": "b", "tests": ["t::u"], "part": "half"}, 3: {"name": "c"}})
    assert "**1 in full, 1 in part, 1 not there.**" in text
    assert "| 1 | a | full | `t::u` |" in text and "| 2 | b | part: half | `t::u` |" in text and "| 3 | c |  |  |" in text
