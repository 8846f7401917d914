"""Configuration: gin files and bindings are parsed strictly, and values are checked."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import gin
import pytest

from igpt_tf import config
from igpt_tf.errors import InputError


class Oven:
    """A class that a configurable returns."""


class Heats(Protocol):
    """A protocol that Oven does not implement and Grill does."""

    def heat(self) -> None:
        """A method."""


@gin.register
class Grill(Oven):
    """A registered class."""

    def heat(self) -> None:
        """Implements the protocol."""


@gin.register
def oven(size: int = 1) -> Oven:
    return Oven()


@gin.register
def fan() -> Callable:
    return lambda: None


@gin.register
def first(other=None):
    return other


@gin.register
def second(other=None):
    return other


@gin.configurable
def bake(*, loaves=1, flour=2):
    return loaves * flour


@gin.configurable
def roast(
    *,
    num_steps: int,
    seed=0,
    learning_rates: Sequence[float] = (0.1,),
    heat: float | None = None,
    place: Oven | None = None,
    source: Heats | None = None,
    window: tuple[int, int] | None = None,
    cuts: Mapping[str, tuple[int, int]] | None = None,
    name: str = "roast",
    mode: Literal["best", "last"] = "best",
    gentle: bool = False,
    baste: Callable | None = None,
    sauces: Sequence[Callable] = (),
    build: Callable[..., Oven] | None = None,
    data_dir: str = "",
):
    return locals()


def refusal(files=(), params=()):
    """The message of the InputError that `config.parse` raises, which is one line."""
    with pytest.raises(InputError) as error:
        config.parse(list(files), list(params))
    assert "\n" not in str(error.value)
    return str(error.value)


# Files


def test_a_binding_takes_precedence_over_a_file(tmp_path):
    path = tmp_path / "bread.gin"
    path.write_text("bake.loaves = 3\nbake.flour = 5\n")
    config.parse([str(path)], ["bake.loaves = 4"])
    assert bake() == 20


def test_a_file_that_includes_itself_is_refused(tmp_path):
    first_file, second_file = tmp_path / "a.gin", tmp_path / "b.gin"
    first_file.write_text(f"include '{second_file}'\n")
    second_file.write_text(f"include '{first_file}'\n")
    assert f"includes itself: {first_file} -> {second_file}" in refusal([str(first_file)])


def test_a_file_may_be_included_twice(tmp_path):
    (tmp_path / "base.gin").write_text("bake.loaves = 3\n")
    path = tmp_path / "run.gin"
    path.write_text("include 'base.gin'\ninclude 'base.gin'\nbake.flour = 1\n")
    config.parse([str(path)], [])
    assert bake() == 3


def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = config.find_gin_file("gin/runs/digits_tiny_ar.gin")
    assert os.path.isfile(found)
    os.makedirs("gin/runs")
    (tmp_path / "gin/runs/digits_tiny_ar.gin").write_text("bake.loaves = 7\n")
    config.parse(["gin/runs/digits_tiny_ar.gin"], [])  # the user's own file takes precedence
    assert bake() == 14


def test_a_missing_file_names_the_folders_and_the_closest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(["gin/runs/digit_tiny_ar.gin"])
    assert str(tmp_path) in message and config.SHIPPED in message
    assert "did you mean gin/runs/digits_tiny_ar.gin?" in message


def test_an_error_names_the_file_and_the_line(tmp_path):
    (tmp_path / "base.gin").write_text("# A comment\n\nbake.loafs = 3\n")
    (tmp_path / "run.gin").write_text("include 'base.gin'\n")
    assert f"{tmp_path / 'base.gin'}, line 3" in refusal([str(tmp_path / "run.gin")])
    (tmp_path / "base.gin").write_text("include 'nothing.gin'\n")
    assert "nothing.gin" in refusal([str(tmp_path / "run.gin")])


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "run.gin"
    path.write_bytes(b"\xef\xbb\xbfbake.loaves = 3\n")
    config.parse([str(path)], [])
    assert bake() == 6


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfeb\0a\0", b"a = '\xff'", b"\0", b"a.b = [", b"  x\n y", b"{}", b"a.b = 1 2"],
)
def test_a_file_that_is_not_gin_is_refused(tmp_path, content):
    path = tmp_path / "run.gin"
    path.write_bytes(content)
    assert str(path) in refusal([str(path)])


def test_an_import_that_fails_is_refused(tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_a_user.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "ZeroDivisionError" in refusal(params=["import broken_module_of_a_user"])
    assert "No module named" in refusal(params=["import module_that_does_not_exist"])


def test_home_folders_are_expanded_and_remote_paths_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    config.parse([], ["roast.name = '~/x'", "roast.data_dir = 'gs://b/x'", "roast.num_steps = 1"])
    arguments = roast()
    assert arguments["name"] == "/home/user/x" and arguments["data_dir"] == "gs://b/x"
    gin.clear_config()
    assert "only local files" in refusal(params=["roast.name = 'gs://bucket/x'"])
    assert "home folder" in refusal(params=["roast.name = '~no_such_user/x'"])


# Names


@pytest.mark.parametrize(
    ("binding", "parts"),
    [
        ("bake.loafs = 3", ["loafs", "did you mean loaves?"]),
        ("baek.loaves = 3", ["baek", "did you mean bake?"]),
        ("bake.loaves = @ovne()", ["ovne", "did you mean oven?"]),
        ("bake.loaves = ", ["bake.loaves"]),
        ("bake.loaves = [", ["bake.loaves"]),
        ("bake.loaves = %NOTHING", ["the macro NOTHING has no value"]),
        ("bake.loaves = %gin.REQUIRED", ["bake.loaves"]),
        ("bake.loaves = best", ["strings need quotes"]),
        ("bake.loaves = data/images", ["strings need quotes"]),
        ("bake.loaves = ~/images", ["strings need quotes"]),
        ("bake.loaves = [red, blue]", ["strings need quotes"]),
        ("bake.loaves = 3 4", ["Expected newline"]),
        ("bake.loaves", ["expected ':' or '='"]),
        ("bake.loaves = " + "[" * 5000, []),
        ("bake.loaves = " + "9" * 5000, []),
        ("A = %B\nB = %A\nbake.loaves = %A", ["need themselves", "B"]),
        ("A = [1, %A]\nbake.loaves = %A", ["need themselves", "A -> A"]),
        ("first.other = @second()\nsecond.other = @first()", ["need themselves"]),
    ],
)
def test_a_wrong_binding_is_refused_with_a_hint(binding, parts):
    message = refusal(params=[binding])
    assert not [part for part in parts if part not in message]


def test_a_scope_may_call_its_own_configurable():
    config.parse([], ["first.other = @inner/first()", "inner/first.other = 3"])
    assert gin.get_configurable("first")() == 3


def test_a_binding_that_is_not_read_is_refused():
    config.parse([], ["bake.loaves = 3", "SPARE = 4"])
    bake()
    with pytest.raises(InputError, match="SPARE"):
        config.refuse_unread_bindings()


def test_arguments_of_a_function_that_was_replaced_may_stay_unread(tmp_path):
    file = tmp_path / "first.gin"
    file.write_text("first.other = [@a/second()]\na/second.other = @oven()\noven.size = 2\n")
    for extra, unread in (
        ([], None),
        (["oven.size = 4"], "oven.size"),  # bound after the replacement
        (["b/second.other = 5"], "b/second.other"),  # was not named by what was replaced
    ):
        gin.clear_config()
        config.parse([str(file)], ["first.other = @fan()", *extra])
        gin.get_configurable("first")()
        if unread is None:
            config.refuse_unread_bindings()
        else:
            with pytest.raises(InputError, match=f"reads {unread};"):
                config.refuse_unread_bindings()


def test_bindings_of_one_configurable_are_copied_to_another():
    config.parse([], ["bake.flour = 3", "first.other = 1", "second.other = 2"])
    config.copy_bindings("first", "second", ["other"])
    assert gin.query_parameter("second.other") == 2
    config.copy_bindings("bake", "roast", ["loaves"])  # not bound: skipped
    gin.clear_config()


def test_the_operative_text_repeats_the_configuration():
    config.parse([], ["bake.loaves = 3"])
    result = bake()
    config.refuse_unread_bindings()
    text = config.operative_text()
    gin.clear_config()
    config.parse([], [text])
    assert bake() == result and config.operative_text() == text


def test_hyperparameters_are_the_numbers_texts_and_references_in_force():
    config.parse([], ["bake.loaves = 3", "first.other = @second()", "second.other = 'rye'"])
    bake()
    gin.get_configurable("first")()
    expected = {"bake.flour": 2, "bake.loaves": 3, "first.other": "@second()"}
    assert config.hyperparameters() == {**expected, "second.other": "rye"}


def test_the_recipe_of_a_data_set_is_used_unless_files_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common, own = config.recipes("finetune", {"name": "digits"}, [])
    assert os.path.isfile(common) and own.endswith("finetune_digits.gin")
    assert config.recipes("finetune", {"name": "digits"}, ["x.gin"]) == [common, "x.gin"]
    assert config.recipes("finetune", {"name": "unknown"}, []) == [common]
    assert config.recipes("finetune", None, []) == [common]
    (tmp_path / "finetune_x.gin").write_text("")
    assert config.recipes("finetune", {"name": f"/../../..{tmp_path}/finetune_x"}, []) == [common]


# Values


@pytest.mark.parametrize(
    ("binding", "allowed"),
    [
        ("roast.num_steps = 1e6", "a whole number"),
        ("roast.num_steps = 'many'", "a whole number"),
        ("roast.num_steps = True", "a whole number"),
        ("roast.num_steps = None", "a whole number"),
        ("roast.num_steps = 9223372036854775808", "a whole number"),
        ("roast.num_steps = 0", "1 to 2"),
        ("roast.num_steps = 2147483648", "1 to 2"),
        ("roast.seed = 0.5", "a whole number"),
        ("roast.seed = -1", "0 to 2"),
        ("roast.seed = 3000000000", "0 to 2"),
        ("roast.learning_rates = 0.003", "Sequence"),
        ("roast.learning_rates = [0.1, 'x']", "Sequence"),
        ("roast.learning_rates = [0.1, -0.1]", "above 0"),
        ("roast.learning_rates = [1e999]", "Sequence"),
        ("roast.heat = '3'", "a number or None"),
        ("roast.place = @oven", "write @oven()"),
        ("roast.place = 3", "Oven"),
        ("roast.place = @fan()", "Oven or None"),
        ("roast.source = @oven()", "Heats or None"),
        ("roast.num_steps = @oven()", "a whole number"),
        ("roast.window = 5", "tuple[int, int]"),
        ("roast.window = (1, 2, 3)", "tuple[int, int]"),
        ("roast.cuts = {'rump': 3}", "Mapping[str, tuple[int, int]]"),
        ("roast.cuts = {1: (1, 2)}", "Mapping[str, tuple[int, int]]"),
        ("roast.name = 3", "a string in quotes"),
        ("roast.mode = 'worst'", "'best' or 'last'"),
        ("roast.gentle = 1", "True or False"),
        ("roast.baste = 'oil'", "Callable"),
        ("roast.baste = @oven()", "Callable"),
        ("roast.sauces = @oven()", "Sequence"),
        ("roast.build = @fan", "Oven"),
        ("STEPS = 0.5\nroast.num_steps = %STEPS", "a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(binding, allowed):
    name = binding.split("\n")[-1].split(" ")[0]
    message = refusal(params=[binding])
    assert message.startswith(f"{name} must be ") and allowed in message


@pytest.mark.parametrize(
    "binding",
    [
        "roast.seed = 2147483647",
        "roast.learning_rates = (1, 0.5)",
        "roast.heat = 3",
        "roast.heat = None",
        "roast.place = @oven()",
        "roast.place = @warm/oven()",
        "roast.place = @Grill()",
        "roast.source = @Grill()",
        "roast.source = @first()",  # not annotated, so its result is not known
        "roast.window = (1, 2)",
        "roast.mode = 'last'",
        "roast.gentle = True",
        "roast.baste = @oven",
        "roast.sauces = [@oven, @fan()]",
        "roast.build = @Grill",
        "roast.build = @first",
        "STEPS = 5\nroast.num_steps = %STEPS",
    ],
)
def test_a_value_of_the_right_type_is_accepted(binding):
    config.parse([], [binding])


# Text


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
    with pytest.raises(InputError) as error:
        config.parse_bindings(text)
    assert "\n" not in str(error.value)
