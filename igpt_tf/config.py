"""Configuration: gin files and bindings, parsed strictly, and the text that repeats a run."""

import contextlib
import os
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

import gin
from absl import flags
from gin import config_parser

from igpt_tf import bindings
from igpt_tf.errors import InputError

# What gin raises on a mistake; a file that includes itself recurses.
_MISTAKES = (
    ValueError,
    SyntaxError,
    TypeError,
    OSError,
    ImportError,
    AttributeError,
    tokenize.TokenError,
    RecursionError,
)
_RECIPES = os.path.join("gin", "tools")

flags.DEFINE_multi_string("gin_file", [], "A gin file; may be repeated.")
flags.DEFINE_multi_string(
    "gin_param", [], "A gin binding such as 'train.num_steps=100'; may be repeated."
)


def parse_flags() -> None:
    """Parses what `--gin_file` and `--gin_param` name. Raises: InputError."""
    parse(flags.FLAGS.gin_file, flags.FLAGS.gin_param)


def parse(gin_files: list[str], gin_params: list[str]) -> None:
    """Parses gin files, then single bindings, which win.

    Raises:
        InputError: A file is missing, a name is misspelt, a value does not parse or does not suit.
    """
    for path in gin_files:
        if not os.path.isfile(path):
            raise InputError(f"the gin file does not exist. Received: --gin_file={path}")
        with _parsing(f"--gin_file={path}"):
            gin.parse_config_file(path)
    for binding in gin_params:
        with _parsing(f"--gin_param={binding}"):
            gin.parse_config(binding)
    with _parsing(", ".join([*gin_files, *gin_params])):
        gin.finalize()
    bindings.check(_bindings(gin.config_str()))


def recipes(tool: str, data: dict | None, given: Sequence[str]) -> list[str]:
    """The gin files of a tool: what all its runs have in common, then those `given`.

    Args:
        tool: Its name; its files are gin/tools/TOOL.gin and gin/tools/TOOL_DATA.gin.
        data: Description of the data set the model was trained on, or None.
        given: If none, the file for that data set is taken where there is one.
    """
    common = os.path.join(_RECIPES, f"{tool}.gin")
    own = os.path.join(_RECIPES, f"{tool}_{data['name']}.gin") if data else ""
    return [common, *(given or ([own] if os.path.exists(own) else []))]


def refuse_unread_bindings() -> None:
    """Stops on bindings that nothing has read, which gin itself passes over in silence.

    Call it once every collaborator is built.

    Raises:
        InputError: Names the unread bindings.
    """
    unread = sorted(_bindings(gin.config_str()) - _bindings(gin.operative_config_str()))
    if unread:
        raise InputError(
            f"no part of this program reads {', '.join(unread)}; "
            "remove the binding or mend its name"
        )


def borrow(root: str, names: Sequence[str], lender: str = "train") -> None:
    """Gives another root what run and data set files bind to `train`.

    Args:
        root: A configurable; its own bindings win.
        names: Parameters of both. What the lender leaves to its defaults, so does the root.
        lender: The configurable that the files speak to.
    """
    with gin.unlock_config():
        for name in names:
            if not _is_bound(f"{root}.{name}") and _is_bound(f"{lender}.{name}"):
                gin.bind_parameter(f"{root}.{name}", gin.query_parameter(f"{lender}.{name}"))


def bound(name: str):
    """What a configurable's parameter is bound to, None if to nothing."""
    return gin.query_parameter(name) if _is_bound(name) else None


def parse_bindings(text: str) -> dict[str, str]:
    """Parses gin text without applying it: no configurable needs to be registered.

    Comments, imports and includes are skipped; the last binding of a name wins. Values are written
    in Python's form, so texts that differ only in quotes, line breaks or spaces compare equal.

    Raises:
        InputError: The text is not gin.

    Example:
        parse_bindings("train.seed = 0  # the default\\nshift/train.objective = @masked()")
        # {"train.seed": "0", "shift/train.objective": "@masked()"}
    """
    bindings = {}
    with _parsing(f"{text[:100]!r}"):
        for statement in config_parser.ConfigParser(text, _References()):
            if isinstance(statement, config_parser.BindingStatement):
                name = ".".join(filter(None, (statement.selector, statement.arg_name)))
                name = f"{statement.scope}/{name}" if statement.scope else name
                bindings[name] = repr(statement.value)
    return bindings


@dataclass(frozen=True)
class _Reference:
    text: str

    def __repr__(self) -> str:
        return self.text


class _References(config_parser.ParserDelegate):
    """Keeps references and macros as text."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return _Reference(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        return _Reference(f"%{macro_name}")


def operative_text() -> str:
    """The configuration in force, defaults included, as gin text that repeats the run."""
    return gin.operative_config_str()


def operative_markdown() -> str:
    """`operative_text` for TensorBoard's text tab."""
    return gin.markdown(gin.operative_config_str())


def _is_bound(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True


def _bindings(text: str) -> set[str]:
    """The left-hand sides of a configuration's bindings: {'train.num_steps', ...}."""
    lines = (line for line in text.splitlines() if not line.startswith(("#", " ", "\t")))
    return {line.split("=")[0].strip() for line in lines if "=" in line}


@contextlib.contextmanager
def _parsing(received: str):
    """Turns what gin raises on a mistake into an InputError that quotes the mistaken input."""
    try:
        yield
    except _MISTAKES as error:
        what = " ".join(str(error).split(" in config string")[0].split())
        raise InputError(f"gin cannot parse this: {what}. Received: {received}") from None
