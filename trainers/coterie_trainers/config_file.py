"""Reads a configuration from a YAML file. Every mistake is named: file, key, value, and what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from coterie.errors import ConfigError
from coterie_trainers.config import TrainConfig

Config = TypeVar("Config", bound=BaseModel)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The training configuration in a YAML file, with ``overrides`` such as ``training.steps=5`` put over it.

    Raises:
        ConfigError: as ``load_settings``.
    """
    return load_settings(TrainConfig, path, overrides)


def load_settings(kind: type[Config], path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of this kind in a YAML file, with ``overrides`` put over it.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown or given twice, or a value is not allowed.
    """
    path = Path(path)
    settings = _read(kind, path)
    for override in overrides:
        _put(settings, override)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        file = f"{path} with --set {' --set '.join(overrides)}" if overrides else str(path)
        raise ConfigError(_explain(kind, file, settings, error)) from None


def _read(kind: type[BaseModel], path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(file.name for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern))
        hint = f" In {path.parent} there are: {', '.join(near)}." if near else ""
        raise ConfigError(f"There is no configuration file {path}.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        settings = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        begun = f" ({error.context}{_place(error.context_mark)})" if error.context and error.context_mark else ""
        raise ConfigError(f"{path}{_place(error.problem_mark)}: {error.problem or error.context}{begun}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(settings, dict):
        what = "is empty" if settings is None else f"holds a {type(settings).__name__}"
        raise ConfigError(f"{path} {what}, where a mapping of settings is wanted: {_keys(kind)}.")
    return settings


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is given twice is an error, and ``1e-3`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, yaml.Node] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem="a key must be a plain value", problem_mark=key_node.start_mark)
            if key in seen:
                first = seen[key].start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice, first in line {first}", problem_mark=key_node.start_mark
                )
            seen[key] = key_node
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"


def _put(settings: dict[str, Any], override: str) -> None:
    """Set ``a.b=c`` in nested mappings; the value is read as YAML."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override}: give it as key=value, such as --set training.steps=5.")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is no YAML value ({error}).") from None
    place = settings
    for name in names[:-1]:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {name!r} holds {inner!r}, not settings of its own.")
        place = inner
    place[names[-1]] = value


def _explain(kind: type[BaseModel], file: str, settings: Mapping[str, Any], error: ValidationError) -> str:
    """A sentence a mistake."""
    mistakes = list(dict.fromkeys(_mistakes(kind, settings, error)))
    if len(mistakes) == 1:
        return f"{file}: {mistakes[0]}"
    return "\n  ".join([f"{file}: {len(mistakes)} settings are wrong:", *mistakes])


def _mistakes(kind: type[BaseModel], settings: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    """Each mistake once. Where a setting may have one of two shapes, only the shape that was tried counts."""
    found = [
        (details, *_follow(settings, details["loc"], missing=details["type"] == "missing"))
        for details in error.errors(include_url=False)
    ]
    tried = [
        (details, keys, value)
        for details, keys, value in found
        if len(keys) == len(details["loc"]) or not _of_other_shape(value, details["type"])
    ]
    # Where it is of no shape at all, what goes deepest into it is nearest to what was meant.
    deepest = max(len(keys) for _, keys, _ in found)
    for details, keys, value in tried or [each for each in found if len(each[1]) == deepest]:
        yield _sentence(kind, settings, keys, value, details)


def _of_other_shape(value: Any, mistake: str) -> bool:
    """Whether a setting that may be a plain value or a mapping is the other of the two than the mistake is about."""
    if mistake in ("dict_type", "model_type", "model_attributes_type"):
        return not isinstance(value, dict)
    return mistake in ("string_type", "int_type", "float_type") and isinstance(value, dict)


def _sentence(
    kind: type[BaseModel],
    settings: Mapping[str, Any],
    keys: Sequence[str | int],
    value: Any,
    details: Mapping[str, Any],
) -> str:
    key = ".".join(map(str, keys))
    if details["type"] == "extra_forbidden":
        return _unknown_key(kind, settings, key, keys)
    if details["type"] == "missing":
        return f"the key {key!r} is missing."
    if details["type"].endswith("_type") and (model := _model_at(kind, settings, keys)) and not isinstance(value, dict):
        return f"{key} = {value!r} is not allowed. It is a mapping of: {_keys(model)}."
    if keys and keys[-1] == "api_key":  # perhaps the key itself: it must not come into a log
        return f"{key} is not shown, and not allowed. Name the environment variable that holds it, as 'env:MODEL_KEY'."
    allowed = str(details["msg"]).removeprefix("Value error, ").replace("Input should", "It should")
    if not key:
        return f"{allowed[:1].upper()}{allowed[1:]}."
    return f"{key} = {value!r} is not allowed. {allowed[:1].upper()}{allowed[1:]}."


def _unknown_key(kind: type[BaseModel], settings: Mapping[str, Any], key: str, keys: Sequence[str | int]) -> str:
    model = _model_at(kind, settings, keys[:-1]) or kind
    near = difflib.get_close_matches(str(keys[-1]), list(model.model_fields), n=1)
    elsewhere = [
        place for place, other in _sections(kind).items() if other is not model and keys[-1] in other.model_fields
    ]
    if elsewhere:
        hint = f" It belongs in {' or '.join(repr(place) for place in elsewhere)}."
    elif near:
        hint = f" Did you mean {near[0]!r}?"
    else:
        hint = ""
    return f"unknown key {key!r}.{hint} Allowed here: {_keys(model)}."


def _follow(
    settings: Mapping[str, Any], location: Sequence[str | int], *, missing: bool
) -> tuple[list[str | int], Any]:
    """The keys and the value at a mistake's location, without pydantic's names of the shapes it tried."""
    keys: list[str | int] = []
    value: Any = settings
    for index, part in enumerate(location):
        there = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if there:
            keys.append(part)
            value = value[part]
        elif missing and index == len(location) - 1:
            return [*keys, part], None
    return keys, value


def _model_at(kind: Any, settings: Mapping[str, Any], keys: Sequence[str | int]) -> type[BaseModel] | None:
    """The section that stands at these keys, or None."""
    value: Any = settings
    for key in keys:
        model = _model_in(kind, value)
        if model is not None:
            kind = model.model_fields[str(key)].annotation if key in model.model_fields else None
        else:
            kind = get_args(kind)[-1] if get_origin(kind) in (dict, list) else None
        value = value.get(key) if isinstance(value, dict) else None
    return _model_in(kind, value)


def _model_in(kind: Any, value: Any = None) -> type[BaseModel] | None:
    """The section among a type's alternatives; of several the one whose ``kind`` the value has, else the first."""
    models = list(_models_in(kind))
    wanted = value.get("kind") if isinstance(value, dict) else None
    fitting = [
        model for model in models if "kind" in model.model_fields and model.model_fields["kind"].default == wanted
    ]
    return next(iter([*fitting, *models]), None)


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) in (types.UnionType, Union, Annotated):
        for alternative in get_args(kind):
            yield from _models_in(alternative)


def _sections(kind: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """The sections that stand at the top level or one below, by where they stand."""
    found: dict[str, type[BaseModel] | None] = {}
    for name, field in kind.model_fields.items():
        found[name] = _model_in(field.annotation)
        if get_origin(field.annotation) is dict:
            found[f"{name}.<name>"] = _model_in(get_args(field.annotation)[-1])
    return {name: model for name, model in found.items() if model is not None}


def _keys(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
