"""What is said of a configuration that cannot be taken: one sentence with the option, its value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hpfwi.errors import ConfigError
from hpfwi.options import Option, toml_value


def is_table(name: str, defaults: Mapping[str, Option]) -> bool:
    """Whether options have this dotted name before their own."""
    return any(option.startswith(f"{name}.") for option in defaults)


def unknown(name: str, defaults: Mapping[str, Option]) -> ConfigError:
    """The error for a name that is not an option, with the nearest ones there are."""
    near = _nearest(name, defaults)
    hint = f"did you mean {' or '.join(near[:2])}?" if near else "`hpfwi config` prints every option."
    return ConfigError(f"{name} is not an option; {hint}")


def _nearest(name: str, defaults: Mapping[str, Option]) -> list[str]:
    """Options of the same last part in another table, else of a similar one in the same, else similar all over."""
    table, _, last = name.rpartition(".")
    same = [option for option in defaults if option.rpartition(".")[2] == last]
    if same:
        return same
    siblings = [option for option in defaults if option.rpartition(".")[0] == table]
    tables = sorted({option.rpartition(".")[0] for option in defaults} - {""})
    return difflib.get_close_matches(name, siblings, n=1, cutoff=0.75) or difflib.get_close_matches(
        name, [*defaults, *tables], n=1, cutoff=0.65
    )


def not_an_option_but_a_table(name: str, value: Any, defaults: Mapping[str, Option]) -> ConfigError:
    """The error for a table that got a value."""
    kind = f"{name}.kind"  # where there is one, it is what a word in place of the table means
    first = kind if kind in defaults else next(option for option in defaults if option.startswith(f"{name}."))
    return ConfigError(
        f"{name} = {toml_value(value)} cannot be used, because {name} is a table of options; set one of them, such as "
        f"{first}."
    )


def option_at(location: Sequence[int | str], defaults: Mapping[str, Option]) -> str:
    """The dotted name of the option or table that a pydantic location lies in."""
    name = ""
    for part in location:
        longer = f"{name}.{part}" if name else str(part)
        if longer not in defaults and not is_table(longer, defaults):
            break
        name = longer
    return name


def first_problem(
    problems: Sequence[Any], values: Mapping[str, Any], origins: Mapping[str, str], defaults: Mapping[str, Option]
) -> ConfigError:
    """One sentence for the first option with a problem, and a count of the others."""
    by_name: dict[str, list[Any]] = {}
    for problem in problems:
        by_name.setdefault(option_at(problem["loc"], defaults), []).append(problem)
    name, wrong = next(iter(by_name.items()))
    others = f" (and {len(by_name) - 1} more to correct: {', '.join(list(by_name)[1:])})" if len(by_name) > 1 else ""
    if name not in defaults:
        table = f"[{name}] " if name else ""
        return ConfigError(f"{table}{_own_words(wrong[0])}{others}.")
    own = [_own_words(problem) for problem in wrong if problem["type"] in ("value_error", "assertion_error")]
    if own:
        return refusal(defaults[name], values.get(name), origins[name], f": {own[0]}{others}.")
    wants = " or ".join(dict.fromkeys(_wanted(problem) for problem in wrong))
    return refusal(defaults[name], values.get(name), origins[name], f"; give {wants}", others)


def refusal(option: Option, value: Any, origin: str, remedy: str, others: str | None = None) -> ConfigError:
    """`option = value cannot be used` and what to do; with `others` the meaning of the option is said too."""
    shown = str(value) if isinstance(value, float) else toml_value(value) if _has_toml(value) else str(value)
    about = "" if others is None else f" ({option.description.rstrip('.')}){others}."
    return ConfigError(f"{option.name} = {shown} (from {origin}) cannot be used{remedy}{about}")


def _has_toml(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | list | tuple | Mapping)


def _own_words(problem: Mapping[str, Any]) -> str:
    """What a validator in the code said, without pydantic's prefix and the final full stop."""
    return " ".join(str(problem["msg"]).removeprefix("Value error, ").split()).rstrip(".")


def _wanted(problem: Mapping[str, Any]) -> str:
    """What would have been right, in words, from one pydantic error."""
    context = problem.get("ctx", {})
    for key, words in (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most")):
        if key in context:
            return f"{words} {context[key]:g}"
    kind = str(problem["type"])
    match kind.split("_")[0]:
        case "literal":
            return str(context["expected"]).replace("'", '"')
        case "int":
            return "a whole number"
        case "float" | "finite":
            return "a finite number"
        case "bool":
            return "true or false"
        case "tuple" | "list":
            return "a list in brackets, such as [1, 2]"
        case "missing":
            return "a list with more values"
    if kind == "string_type":
        return "text"
    if kind == "too_long":
        return f"a list of {context['max_length']} values"
    return _own_words(problem)
