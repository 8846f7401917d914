"""Claims about strict configuration."""

import gin
import pytest

from igpt_tf import config
from igpt_tf.errors import InputError


@gin.configurable
def bake(*, loaves=1, flour=2):
    return loaves * flour


def test_a_binding_wins_over_a_file(tmp_path):
    path = tmp_path / "bread.gin"
    path.write_text("bake.loaves = 3\nbake.flour = 5\n")
    config.parse([str(path)], ["bake.loaves = 4"])
    assert bake() == 20


@pytest.mark.parametrize(
    "binding, named",
    [
        ("bake.loafs = 3", "loafs"),
        ("backe.loaves = 3", "backe"),
        ("bake.loaves = @nothing()", "nothing"),
        ("bake.loaves = ", "bake.loaves"),
        ("bake.loaves = [", "bake.loaves"),
        ("bake.loaves = %NOTHING", "NOTHING"),
        ("bake.loaves = %gin.REQUIRED", "bake.loaves"),
    ],
)
def test_a_misspelt_binding_is_refused_in_one_line_that_names_it(binding, named):
    with pytest.raises(InputError, match=named) as refusal:
        config.parse([], [binding])
    assert "\n" not in str(refusal.value)


def test_a_file_that_includes_itself_is_refused(tmp_path):
    path = tmp_path / "round.gin"
    path.write_text(f"include '{path}'\n")
    with pytest.raises(InputError, match="round.gin"):
        config.parse([str(path)], [])


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match="no_such_file.gin"):
        config.parse(["no_such_file.gin"], [])


def test_a_binding_that_nobody_reads_is_refused():
    config.parse([], ["bake.loaves = 3", "SPARE = 4"])
    bake()
    with pytest.raises(InputError, match="SPARE"):
        config.refuse_unread_bindings()


def test_the_operative_text_repeats_the_configuration():
    config.parse([], ["bake.loaves = 3"])
    result = bake()
    config.refuse_unread_bindings()
    text = config.operative_text()
    gin.clear_config()
    gin.parse_config(text)
    assert bake() == result and config.operative_text() == text


def test_gin_text_is_parsed_without_being_applied():
    text = """# A comment with a.b = 1
import os
bake.loaves = 3  # a comment
oven/bake.flour = [@rye, @wheat(),
    %SPARE]  # continued
SPARE = "it's = # not a comment"
bake:
    loaves = 4
"""
    assert config.parse_bindings(text) == {
        "bake.loaves": "4",
        "oven/bake.flour": "[@rye, @wheat(), %SPARE]",
        "SPARE": '"it\'s = # not a comment"',
    }
    assert config.parse_bindings("a.b = 'x'") == config.parse_bindings('a.b = \\\n    "x"')
    assert config.parse_bindings("") == {}


@pytest.mark.parametrize("text", ["a.b = ", "a.b = [", "a.b = 'x", "\0", "a.b = " + "[" * 5000])
def test_text_that_is_not_gin_is_refused_in_one_line(text):
    with pytest.raises(InputError) as refusal:
        config.parse_bindings(text)
    assert "\n" not in str(refusal.value)
