"""Configuration by gin: files and bindings, parsed strictly and checked before data are read.

Gin alone accepts values of any type and ignores bindings that no function reads. Here

* gin files are found from any folder, and an error names the file and the line;
* a misspelt name is refused with the closest one that exists;
* values, and what a call such as `@digits()` returns, are checked against the type annotation of
  their parameter, and numbers against the range of their name;
* `refuse_unread_bindings` refuses what no function has read, except arguments of a function whose
  reference a later binding has replaced: `train.palette = @grey_palette()` after a file that binds
  `train.palette = @load_palette()` and `load_palette.path`.

A gin file is code: `import` statements in it are executed.
"""

import ast
import collections.abc
import difflib
import graphlib
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gin
from absl import flags
from gin import config_parser

from igpt_tf import files
from igpt_tf.errors import InputError

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
# The folder of gin/ and tools/: the package where it was installed, else the repository.
SHIPPED = _PACKAGE if os.path.isdir(os.path.join(_PACKAGE, "gin")) else os.path.dirname(_PACKAGE)

_COUNT = ("1 to 2^31 - 1", lambda x: 1 <= x < 2**31)
_PERIOD = ("0 (never) to 2^31 - 1", lambda x: 0 <= x < 2**31)  # of names that end with _every
_POSITIVE = ("above 0", lambda x: x > 0)
_FRACTION = ("0 or more and below 1", lambda x: 0 <= x < 1)

# Ranges of numbers, and of numbers in sequences, by the name of the parameter.
_RANGES = {
    "seed": ("0 to 2^31 - 1", lambda x: 0 <= x < 2**31),
    "num_steps": _COUNT,
    "max_steps": _COUNT,
    "batch_size": ("1 to 2^20", lambda x: 1 <= x <= 2**20),
    "keep_checkpoints": _COUNT,
    "num_heldout_images": _COUNT,
    "num_levels": _COUNT,
    "logical_cpus": _COUNT,
    "num_layers": ("1 to 1,000", lambda x: 1 <= x <= 1000),
    "hidden_dim": ("1 to 65,536", lambda x: 1 <= x <= 2**16),
    "num_heads": ("1 to 65,536", lambda x: 1 <= x <= 2**16),
    "vocabulary_size": ("1 to 65,536", lambda x: 1 <= x <= 2**16),
    "num_rewinds": ("0 to 2^31 - 1", lambda x: 0 <= x < 2**31),
    "learning_rate": _POSITIVE,
    "learning_rates": _POSITIVE,
    "epsilon": _POSITIVE,
    "tolerance": _POSITIVE,
    "clip_norm": _POSITIVE,
    "weight_decay": ("0 or more", lambda x: x >= 0),
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "ema_momentum": _FRACTION,
}
# What `parse` has bound: {(scope, function, parameter): value}, and which of these bindings belong
# to functions whose references were replaced.
_bound, _replaced = {}, set()

_REMOTE_PATHS = {"data_dir"}  # TensorFlow Datasets reads gs:// by itself

flags.DEFINE_multi_string(
    "gin_file",
    [],
    "A gin file, of this folder or of those that come with igpt_tf; may be repeated.",
)
flags.DEFINE_multi_string(
    "gin_param", [], "A gin binding such as 'train.num_steps=100'; may be repeated."
)


def parse_flags() -> None:
    """Parses what `--gin_file` and `--gin_param` name. Raises: InputError."""
    parse(flags.FLAGS.gin_file, flags.FLAGS.gin_param)


def parse(gin_files: Sequence[str], gin_params: Sequence[str]) -> None:
    """Parses gin files, then single bindings, which take precedence, and checks all values.

    Args:
        gin_files: Paths, see `find_gin_file`.
        gin_params: Bindings such as "train.num_steps=100".

    Raises:
        InputError: A file is missing, a name is misspelt, a value does not parse or has the wrong
            type, or calls and macros form a cycle.
    """
    _bound.clear()
    _replaced.clear()
    names = []
    for path in gin_files:
        names += _apply_file(path, f"--gin_file={path}")
    for binding in gin_params:
        names += _apply_text(binding, f"--gin_param={binding}")
    try:
        gin.finalize()
    except ValueError as error:  # a macro without a value, a required value that is missing
        received = ", ".join([*gin_files, *gin_params])
        raise InputError(f"{_first_part(error)}. Received: {received}") from None
    _refuse_cycles(names)
    for name in sorted(set(names)):
        _check_value(name)


def find_gin_file(path: str, beside: str | None = None) -> str:
    """Finds a gin file in the working directory, beside another one, or among the shipped ones.

    Args:
        path: Such as "gin/runs/digits_tiny_ar.gin".
        beside: Path of the file that includes it.

    Raises:
        InputError: The file is nowhere; names the folders that were searched.
    """
    folders = [os.curdir, *([os.path.dirname(beside) or os.curdir] if beside else []), SHIPPED]
    for folder in folders:
        found = os.path.normpath(os.path.join(folder, path))
        if os.path.isfile(found):
            return found
    searched = " or ".join(dict.fromkeys(map(os.path.abspath, folders)))
    raise InputError(
        f"the gin file does not exist in {searched}"
        f"{did_you_mean(path, _shipped_gin_files())}. Received: {path}"
    )


def recipes(tool: str, data: dict | None, given: Sequence[str]) -> list[str]:
    """The gin files of a tool: gin/tools/TOOL.gin, then those `given`.

    Args:
        tool: Name of the tool.
        data: Description of the data set that the model was trained on, or None.
        given: Paths. If empty, gin/tools/TOOL_DATA.gin is used, where it exists.
    """
    common = os.path.join(SHIPPED, "gin", "tools", f"{tool}.gin")
    # The name comes from a model's metadata; it must not lead to another folder.
    name = re.sub(r"\W", "", str(data["name"])) if data else ""
    own = os.path.join(SHIPPED, "gin", "tools", f"{tool}_{name}.gin")
    return [common, *(given or ([own] if os.path.exists(own) else []))]


def refuse_unread_bindings() -> None:
    """Refuses bindings that no function has read, which gin itself ignores.

    Call it once everything that gin configures has been built.

    Raises:
        InputError: Names the unread bindings.
    """
    read = parse_bindings(gin.operative_config_str()).keys()
    unread = parse_bindings(gin.config_str()).keys() - read
    unread = sorted(name for name in unread if _binding_key(name) not in _replaced)
    if unread:
        raise InputError(
            f"no part of this program reads {', '.join(unread)}; remove the binding or correct its "
            f"name{did_you_mean(unread[0], read)}"
        )


def copy_bindings(source: str, target: str, names: Sequence[str]) -> None:
    """Binds parameters of `target` to what the parameters of `source` are bound to.

    Run and data set files bind `train`; tools that read such a file without training, such as
    `plan`, take what they need from there.

    Args:
        source: A configurable.
        target: A configurable. Its own bindings take precedence.
        names: Parameters of both. Those that `source` leaves to their defaults are skipped.
    """
    with gin.unlock_config():
        for name in names:
            if not _is_bound(f"{target}.{name}") and _is_bound(f"{source}.{name}"):
                gin.bind_parameter(f"{target}.{name}", gin.query_parameter(f"{source}.{name}"))


def bound(name: str):
    """What a configurable's parameter is bound to, None if to nothing."""
    return gin.query_parameter(name) if _is_bound(name) else None


def parse_bindings(text: str) -> dict[str, str]:
    """Parses gin text without applying it: no configurable needs to be registered.

    Comments, imports and includes are skipped; the last binding of a name counts. Values are
    written in Python's form, so texts that differ only in quotes, line breaks or spaces are equal.

    Raises:
        InputError: The text is not gin.

    Example:
        parse_bindings("train.seed = 0  # the default\\nshift/train.objective = @masked()")
        # {"train.seed": "0", "shift/train.objective": "@masked()"}
    """
    return {
        _name_of(statement): repr(statement.value)
        for statement in _statements(text, "gin text", _ReferencesAsText())
        if isinstance(statement, config_parser.BindingStatement)
    }


def did_you_mean(name: str, known: collections.abc.Iterable[str]) -> str:
    """ "; did you mean X?" with the closest of the known names, or "" if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def operative_text() -> str:
    """The configuration in force, defaults included, as gin text that repeats the run."""
    return gin.operative_config_str()


def operative_markdown() -> str:
    """`operative_text` for TensorBoard's text tab."""
    return gin.markdown(gin.operative_config_str())


def hyperparameters() -> dict[str, bool | int | float | str]:
    """The configuration in force by name, defaults included, without `intervals`.

    Numbers and strings as they are, everything else as gin text.
    """
    return {
        name: _plain_value(text)
        for name, text in parse_bindings(gin.operative_config_str()).items()
        if not name.startswith("intervals.")
    }


def _plain_value(text: str) -> bool | int | float | str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a reference such as @masked()
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def _is_bound(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True


# Files and statements


def _apply_file(path: str, received: str, including: tuple[str, ...] = ()) -> Iterator[str]:
    """Applies a file's statements to gin's configuration; yields the names that are bound."""
    found = find_gin_file(files.local_path(path, "gin_file"), beside=(including or [None])[-1])
    if found in including:
        raise InputError(
            f"the gin file includes itself: {' -> '.join([*including, found])}. "
            f"Received: {received}"
        )
    try:
        with open(found, encoding="utf-8-sig") as file:  # editors may write a byte order mark
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the gin file cannot be read ({reason}). Received: {found}") from None
    yield from _apply_text(text, received if found == path else found, (*including, found))


def _apply_text(text: str, received: str, including: tuple[str, ...] = ()) -> Iterator[str]:
    for statement in _statements(text, received, gin.config.ParserDelegate()):
        where = received
        if including:
            where = f"{including[-1]}, line {statement.location.line_num}"
        if isinstance(statement, config_parser.IncludeStatement):
            yield from _apply_file(statement.filename, where, including)
        elif isinstance(statement, config_parser.ImportStatement):
            _import(statement, where)
        elif isinstance(statement, config_parser.BindingStatement):
            _bind(statement, where)
            yield _name_of(statement)


def _statements(text: str, received: str, delegate) -> Iterator[config_parser.BindingStatement]:
    """Parses text with gin's grammar. Raises: InputError: names the line that does not parse."""
    try:
        yield from config_parser.ConfigParser(text, delegate)
    except Exception as error:  # also of Python's tokenizer and of ast.literal_eval
        line = (getattr(error, "text", None) or "").strip()
        if line and isinstance(error, SyntaxError):
            hint = _quotes_hint(line) or _first_part(error.msg)
            raise InputError(f"gin cannot parse {line!r}: {hint}. Received: {received}") from None
        what = _first_part(error) or type(error).__name__
        raise InputError(
            f"gin cannot parse this: {what}{_closest_configurable(what)}. Received: {received}"
        ) from None


def _import(statement: config_parser.ImportStatement, received: str) -> None:
    try:
        gin.parse_config(statement.format())
    except Exception as error:  # whatever the imported module raises
        what = f"{type(error).__name__}: {_first_part(error)}"
        raise InputError(f"{statement.format()!r} failed ({what}). Received: {received}") from None


def _bind(statement: config_parser.BindingStatement, received: str) -> None:
    name, value = _name_of(statement), statement.value
    value = _with_local_paths(name, value)
    scope, selector, parameter, *_ = statement
    if parameter:
        key = (scope, selector, parameter)
    else:
        key = (f"{scope}/{selector}" if scope else selector, "gin.macro", "value")
    try:
        gin.bind_parameter(key, value)
    except (ValueError, TypeError) as error:
        what = _first_part(error)
        hint = _closest_configurable(what) or _closest_parameter(selector, parameter)
        raise InputError(f"{what}{hint}. Received: {received}") from None
    key = _binding_key(key)
    if key in _bound:
        _replace(_bound[key])
    _bound[key] = value
    _replaced.discard(key)


def _binding_key(name) -> tuple[str, str, str] | None:
    """(scope, function, parameter) of a binding's name or parts; None for the name of a macro."""
    try:
        return gin.config.ParsedBindingKey.parse(name).scope_selector_arg
    except ValueError:
        return None


def _replace(value) -> None:
    """Notes the bindings of the functions that a replaced value names, and of those they name."""
    if isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            _replace(one)
    elif _is_reference(value):
        scope, function = value.config_key
        for key in _bound.keys() - _replaced:
            if key[0] in ("", scope) and key[1] == function:
                _replaced.add(key)
                _replace(_bound[key])


def _name_of(statement: config_parser.BindingStatement) -> str:
    """ "scope/function.parameter", or the name of a macro."""
    name = ".".join(filter(None, (statement.selector, statement.arg_name)))
    return f"{statement.scope}/{name}" if statement.scope else name


def _with_local_paths(name: str, value):
    """Expands `~` at the start of text and refuses remote paths, also inside of sequences."""
    if isinstance(value, str) and name.rpartition(".")[2] not in _REMOTE_PATHS:
        return files.local_path(value, name)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_local_paths(name, one) for one in value)
    return value


@dataclass(frozen=True)
class _Text:
    """A reference or macro as it is written."""

    text: str

    def __repr__(self) -> str:
        return self.text


class _ReferencesAsText(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return _Text(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        return _Text(f"%{macro_name}")


# Messages


def _first_part(error: Exception | str) -> str:
    """Gin's message on one line, without the configuration that it quotes."""
    message = " ".join(str(error).split())
    message = re.split(r" in config string| In (?:bindings string|file)\b", message)[0]
    macro = re.fullmatch(r"No bindings specified for '(.+)/gin\.macro'", message)
    return f"the macro {macro[1]} has no value" if macro else message.removesuffix(".")[:300]


def _quotes_hint(line: str) -> str | None:
    value = line.partition("=")[2]
    if re.search(r"(^|[\[(,{:])\s*[A-Za-z_./~\\][^'\"@%]*$", value):
        return "strings need quotes (in a shell: --gin_param='name=\"string\"')"
    return None


def _closest_configurable(message: str) -> str:
    found = re.search(r"(?:matching|Configurable) (?:reference )?'@?([\w./]+)", message)
    if not found or "doesn't have" in message:
        return ""
    # Gin has no public list of its configurables.
    names = {selector.rpartition(".")[2] for selector, _ in gin.config._REGISTRY.items()}
    return did_you_mean(found.group(1).rpartition(".")[2], names)


def _closest_parameter(selector: str, parameter: str) -> str:
    try:
        function = gin.get_configurable(selector)
    except ValueError:
        return ""
    return did_you_mean(parameter, inspect.signature(function).parameters)


def _shipped_gin_files() -> list[str]:
    return [
        os.path.relpath(os.path.join(folder, name), SHIPPED)
        for folder, _, names in os.walk(os.path.join(SHIPPED, "gin"))
        for name in names
    ]


# Values


def _refuse_cycles(names: Sequence[str]) -> None:
    """Refuses macros and calls that refer to themselves. Raises: InputError: names the cycle."""
    values = {}
    for name in names:
        values.setdefault(_key_of(name), {})[name.rpartition(".")[2]] = _query(name)
    graph, pending = {}, list(values)
    while pending:
        scope, selector = key = pending.pop()
        if key not in graph:
            parameters = {**values.get(("", selector), {}), **values.get(key, {})}
            references = gin.config.iterate_references(parameters)
            graph[key] = {one.config_key for one in references if one.evaluate}
            pending += graph[key]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(
            scope if selector == "gin.macro" else selector.rpartition(".")[2]
            for scope, selector in reversed(error.args[1])
        )
        raise InputError(
            f"these macros or calls need themselves; remove one binding. Received: {cycle}"
        ) from None


def _key_of(name: str) -> tuple[str, str]:
    """(scope, full name of the configurable), as in the `config_key` of a reference."""
    configurable, _, _ = name.rpartition(".")
    reference = configurable or f"{name}/gin.macro"
    return gin.config.ConfigurableReference(reference, False).config_key


def _query(name: str):
    return gin.query_parameter(name if "." in name else f"{name}/gin.macro.value")


def _check_value(name: str) -> None:
    """Checks what is bound to "train.num_steps". Raises: InputError: wrong type or range."""
    configurable, _, parameter = name.rpartition(".")
    if not configurable:  # a macro, checked where it is used
        return
    value = _resolved(gin.query_parameter(name))
    function = gin.get_configurable(configurable.rpartition("/")[2])
    expected = _types(function).get(parameter, typing.Any)
    if not _fits(value, expected):
        hint = _call_hint(value, expected)
        raise InputError(f"{name} must be {_named(expected)}{hint}. Received: {name}={value!r}")
    allowed, holds = _RANGES.get(
        parameter, _PERIOD if parameter.endswith("_every") else (None, None)
    )
    numbers = value if isinstance(value, (list, tuple)) else [value]
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
    """What a macro stands for; anything else is returned as it is."""
    while _is_reference(value) and value.selector == "gin.macro":
        value = gin.query_parameter(f"{value.scoped_selector}.value")
    return value


def _is_reference(value) -> bool:
    return isinstance(value, gin.config.ConfigurableReference)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits(value, expected) -> bool:
    """Whether a bound value may be what the annotation `expected` asks for."""
    value, origin = _resolved(value), typing.get_origin(expected)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in typing.get_args(expected))
    if _is_reference(value) and value.evaluate:
        return _may_be(_returned_type(value), expected)
    if expected is typing.Any:
        return True
    if origin is typing.Literal:
        return value in typing.get_args(expected)
    if collections.abc.Callable in (expected, origin):
        returned = (typing.get_args(expected) or [typing.Any])[-1]
        return _is_reference(value) and _may_be(_returned_type(value), returned)
    if origin in (list, tuple, collections.abc.Sequence):
        return _fits_sequence(value, typing.get_args(expected))
    if origin in (dict, collections.abc.Mapping):
        key, member = typing.get_args(expected)
        return isinstance(value, dict) and all(
            _fits(name, key) and _fits(one, member) for name, one in value.items()
        )
    if _is_reference(value):
        return False
    if expected is float:
        return _is_number(value) and math.isfinite(value)
    if expected is int:
        return _is_number(value) and not isinstance(value, float) and abs(value) < 2**63
    return isinstance(value, expected if origin is None else origin)


def _call_hint(value, expected) -> str:
    """The fix for a function, or functions in a sequence, of which the result is meant."""
    if isinstance(value, (list, tuple)) and typing.get_args(expected):
        hints = [_call_hint(one, typing.get_args(expected)[0]) for one in value]
        return next(filter(None, hints), "")
    if _is_reference(value) and not value.evaluate and _may_be(_returned_type(value), expected):
        return f"; write {value!r}() for what the call returns"
    return ""


def _fits_sequence(value, members) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    if len(members) > 1 and members[-1] is not ...:
        return len(value) == len(members) and all(map(_fits, value, members))
    return all(_fits(one, members[0]) for one in value)


def _returned_type(reference):
    """The annotated result of a call, Any where there is no annotation."""
    function = reference.configurable.wrapped
    if inspect.isclass(function):
        return function
    return typing.get_type_hints(function).get("return", typing.Any)


def _may_be(returned, expected) -> bool:
    """Whether a call that is annotated to return `returned` may return an `expected`."""
    if typing.Any in (returned, expected):
        return True
    for one, other in ((returned, expected), (expected, returned)):
        if typing.get_origin(one) in (types.UnionType, typing.Union):
            return any(_may_be(part, other) for part in typing.get_args(one))
    returned = typing.get_origin(returned) or returned
    expected = typing.get_origin(expected) or expected
    if not (inspect.isclass(returned) and inspect.isclass(expected)):
        return True
    if getattr(expected, "_is_protocol", False):
        methods = [name for name, member in vars(expected).items() if inspect.isfunction(member)]
        return all(hasattr(returned, name) for name in methods)
    return issubclass(returned, expected) or (returned, expected) == (int, float)


def _named(expected) -> str:
    """The type in words."""
    if typing.get_origin(expected) in (types.UnionType, typing.Union):
        return " or ".join(map(_named, typing.get_args(expected)))
    if typing.get_origin(expected) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(expected)))
    words = {
        int: "a whole number",
        float: "a number",
        str: "a string in quotes",
        bool: "True or False",
        type(None): "None",
    }
    name = str(expected) if typing.get_origin(expected) else expected.__name__
    return words.get(expected, "of type " + re.sub(r"(\w+\.)+(?=\w)", "", name))
