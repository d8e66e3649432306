"""YAML as a tree with lines: what a plain word means, and what a file of settings must not hold."""

import pytest

from mhimdist.config.yaml_nodes import MOST_BYTES, MOST_DEPTH, parse, place, typed
from mhimdist.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005),  # PyYAML reads a text, because YAML 1.1 wants 5.0e-4
        ("1e5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("007", "007"),
        ("0o17", "0o17"),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ('"true"', "true"),
        ("'5'", "5"),
        ("~", None),
        ("", None),
        ("2026-11-26", "2026-11-26"),
        ("=", "="),
        ("9" * 30, 1e30 - 1),
    ],
)
def test_a_plain_word_means_what_yaml_1_2_says(text, value):
    found = typed(parse(f"key: {text}".encode(), "a.yaml"))["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb: !!python/object/apply:os.system [ls]", "line 2: expected a value without a tag"),
        (b"a: !!int '5'", "line 1: expected a value without a tag"),
        (b"a: !x 5", "line 1: expected a value without a tag"),
        (b"a: 1\nb: 2\na: 3", "line 3: a comes twice, first in line 1"),
        (b"a:\n  b: 1\n  'b': 2", "line 3: b comes twice, first in line 2"),
        (b"a: &x [*x]", r"line 1: the alias \*x has no anchor"),
        (b"a: 1\n---\nb: 2", "line 2: expected one document"),
        (b"a: 1\n? [1]\n: 2", "line 2: expected a name before the colon"),
        (b"a: &x {b: 1}\nc:\n  <<: *x", "line 3: merge keys"),
        (b"a: 1\nb: \xff", "line 2: expected UTF-8, got the byte 0xff"),
        (b"a: 1\n\tb: 2", "line 2: not YAML: .*cannot start any token"),
        (b"a: 1\nb: c: d", "line 2: not YAML: mapping values are not allowed here"),
        (b"a: [1, 2\nb: 3", "line 2: not YAML"),
        (b"a: \x07", "line 1: not YAML: special characters"),
        (b'a: "\\ud800"', r"line 1: expected visible text, got the character U\+D800"),
        (b'a: "\\x00"', r"line 1: expected visible text, got the character U\+0000"),
        (b'a: "\\UFFFFFFFF"', "not YAML"),
        (b"a: " + b"[" * (MOST_DEPTH + 1), f"line 1: expected at most {MOST_DEPTH} levels"),
        pytest.param(b"{" * 100_000, "levels of nesting", id="deep"),
        pytest.param(b"a" * (MOST_BYTES + 1), "expected at most 256 KiB", id="large"),
    ],
)
def test_what_a_file_of_settings_must_not_hold_is_refused(text, message):
    with pytest.raises(ConfigError, match=rf"^a\.yaml(, |: ).*{message}|^a\.yaml, {message}"):
        parse(text, "a.yaml")


@pytest.mark.faults(52)
def test_aliases_repeat_values_but_make_no_bomb():
    assert typed(parse(b"a: &x [1, 2]\nb: *x", "a.yaml")) == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    with pytest.raises(ConfigError, match=r"line 5: expected at most 20,000 values"):
        parse(bomb.encode(), "a.yaml")


def test_every_value_has_a_line():
    tree = parse(b"a: 1\nb:\n  c:\n    - 5\n    - d: 6\n", "a.yaml")
    assert place(tree, ("b",)) == "line 2"
    assert place(tree, ("b", "c")) == "line 3"
    assert place(tree, ("b", "c", 1, "d")) == "line 5"
    assert place(tree, ("b", "missing")) == "line 2"
