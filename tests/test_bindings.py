"""Claims about the values that gin binds: the wrong ones are refused before anything is read."""

from collections.abc import Callable, Sequence

import gin
import pytest

from igpt_tf import config
from igpt_tf.errors import InputError


class Oven:
    """What a configurable returns."""


@gin.register
def oven() -> Oven:
    """One."""
    return Oven()


@gin.configurable
def roast(
    *,
    num_steps: int,
    seed=0,
    learning_rates: Sequence[float] = (0.1,),
    heat: float | None = None,
    place: Oven | None = None,
    window: tuple[int, int] | None = None,
    name: str = "roast",
    gentle: bool = False,
    baste: Callable | None = None,
    sauces: Sequence[Callable] = (),
):
    """Returns what it was given."""
    return locals()


@pytest.mark.parametrize(
    ("binding", "allowed"),
    [
        ("roast.num_steps = 1e6", "a whole number"),
        ("roast.num_steps = 'many'", "a whole number"),
        ("roast.num_steps = True", "a whole number"),
        ("roast.num_steps = None", "a whole number"),
        ("roast.num_steps = 0", "1 or more"),
        ("roast.seed = 0.5", "a whole number"),
        ("roast.seed = -1", "0 to 2"),
        ("roast.seed = 3000000000", "0 to 2"),
        ("roast.learning_rates = 0.003", "Sequence"),
        ("roast.learning_rates = [0.1, 'x']", "Sequence"),
        ("roast.learning_rates = [0.1, -0.1]", "above 0"),
        ("roast.heat = '3'", "a number or None"),
        ("roast.place = @oven", r"write @oven\(\)"),
        ("roast.place = 3", "Oven"),
        ("roast.window = 5", r"tuple\[int, int\]"),
        ("roast.window = (1, 2, 3)", r"tuple\[int, int\]"),
        ("roast.name = 3", "a text in quotes"),
        ("roast.gentle = 1", "True or False"),
        ("roast.baste = 'oil'", "Callable"),
        ("roast.sauces = @oven()", "Sequence"),
        ("STEPS = 0.5\nroast.num_steps = %STEPS", "a whole number"),
    ],
)
def test_a_value_that_does_not_suit_is_refused_in_one_line_that_names_it(binding, allowed):
    name = binding.split("\n")[-1].split(" ")[0]
    with pytest.raises(InputError, match=f"{name} must be .*{allowed}") as refusal:
        config.parse([], [binding])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "binding",
    [
        "roast.seed = 2147483647",
        "roast.learning_rates = (1, 0.5)",
        "roast.heat = 3",
        "roast.heat = None",
        "roast.place = @oven()",
        "roast.place = @warm/oven()",
        "roast.window = (1, 2)",
        "roast.gentle = True",
        "roast.baste = @oven",
        "roast.sauces = [@oven, @oven()]",
        "STEPS = 5\nroast.num_steps = %STEPS",
    ],
)
def test_a_value_that_suits_is_taken(binding):
    config.parse([], [binding])
