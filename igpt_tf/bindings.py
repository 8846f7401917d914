"""What gin binds, held against what it is bound to: types by annotation, ranges by name.

A wrong value is so refused before any data are read, and before a workdir is claimed.
"""

import collections.abc
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable

import gin

from igpt_tf.errors import InputError

_PERIOD = ("0 (never) or positive", lambda x: x >= 0)
_COUNT = ("1 or more", lambda x: x >= 1)
_POSITIVE = ("above 0", lambda x: x > 0)
_SHARE = ("0 or more and below 1", lambda x: 0 <= x < 1)

# Ranges of numbers, and of numbers in sequences, wherever a parameter has the name.
_RANGES = {
    "seed": ("0 to 2^31 - 1", lambda x: 0 <= x < 2**31),
    "num_steps": _COUNT,
    "max_steps": _COUNT,
    "batch_size": _COUNT,
    "keep_checkpoints": _COUNT,
    "num_heldout_images": _COUNT,
    "num_levels": _COUNT,
    "logical_cpus": _COUNT,
    "num_rewinds": ("0 or more", lambda x: x >= 0),
    "log_every": _PERIOD,
    "evaluate_every": _PERIOD,
    "checkpoint_every": _PERIOD,
    "sample_every": _PERIOD,
    "probe_every": _PERIOD,
    "learning_rate": _POSITIVE,
    "learning_rates": _POSITIVE,
    "epsilon": _POSITIVE,
    "tolerance": _POSITIVE,
    "clip_norm": _POSITIVE,
    "weight_decay": ("0 or more", lambda x: x >= 0),
    "beta_1": _SHARE,
    "beta_2": _SHARE,
    "ema_momentum": _SHARE,
}


def check(names: Iterable[str]) -> None:
    """Checks what is bound to `names`, such as "train.num_steps".

    Raises:
        InputError: A value is not of the parameter's type or outside its range.
    """
    for name in sorted(names):
        configurable, _, parameter = name.rpartition(".")
        if not configurable:  # a macro, checked where it is used
            continue
        expected = _types(gin.get_configurable(configurable.rpartition("/")[2])).get(parameter)
        value = _resolved(gin.query_parameter(name))
        if expected is not None and not _fits(value, expected):
            raise InputError(
                f"{name} must be {_named(expected, value)}. Received: {name}={value!r}"
            )
        _check_range(name, parameter, value)


def _check_range(name: str, parameter: str, value) -> None:
    allowed, holds = _RANGES.get(parameter, (None, None))
    numbers = value if isinstance(value, list | tuple) else [value]
    if allowed and not all(holds(x) for x in numbers if _is_number(x)):
        raise InputError(f"{name} must be {allowed}. Received: {name}={value!r}")


def _types(function) -> dict[str, object]:
    """The parameters' annotations; where there is none, the type of a plain default."""
    function = function.__init__ if inspect.isclass(function) else function
    defaults = {
        name: type(parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, bool | int | float | str)
    }
    return defaults | typing.get_type_hints(function)


def _resolved(value):
    """What a macro stands for; anything else stays."""
    while _is_reference(value) and value.selector == "gin.macro":
        value = gin.query_parameter(f"{value.scoped_selector}.value")
    return value


def _is_reference(value) -> bool:
    return isinstance(value, gin.config.ConfigurableReference)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(value, expected) -> bool:
    """Whether a bound value may be what the annotation `expected` says."""
    value, origin = _resolved(value), typing.get_origin(expected)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in typing.get_args(expected))
    if expected in (typing.Any, collections.abc.Callable) or origin is collections.abc.Callable:
        return not isinstance(value, str | int | float)
    if origin in (list, tuple, collections.abc.Sequence):
        return _fits_sequence(value, typing.get_args(expected))
    if _is_reference(value):
        return value.evaluate  # what a call returns shows only once it is called
    if expected is float:
        return _is_number(value) and math.isfinite(value)
    if expected is int:
        return _is_number(value) and not isinstance(value, float)
    return isinstance(value, expected if origin is None else origin)


def _fits_sequence(value, members) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if len(members) > 1 and members[-1] is not ...:
        return len(value) == len(members) and all(map(_fits, value, members))
    return all(_fits(one, members[0]) for one in value)


def _named(expected, value) -> str:
    """The type in words."""
    if _is_reference(value) and not value.evaluate:
        return f"what a call returns: write {value!r}()"
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text in quotes",
        bool: "True or False",
    }
    if typing.get_origin(expected) in (types.UnionType, typing.Union):
        return " or ".join(_named(one, value) for one in typing.get_args(expected))
    if expected is type(None):
        return "None"
    name = str(expected) if typing.get_origin(expected) else expected.__name__
    return words.get(expected, "of type " + re.sub(r"(\w+\.)+(?=\w)", "", name))
