"""Typed configuration: one frozen model a verb, every field overridable as `key.sub=value`.

Values are taken in this order, later ones over earlier ones: class defaults, a named preset, a YAML file, overrides.
Nested configurations and dicts are merged key by key, lists are replaced. A wrong value is a one-line `ConfigError`
that names the field, the given value, where it came from and what was expected.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cartridges.errors import ConfigError, unknown_name

COMMAND_LINE = "the command line"
# What PyYAML raises on text that it cannot read: wrong dates, tags that do not fit and deep nesting are no YAMLError.
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)

# PyYAML follows YAML 1.1, where `1e-4` is a string; reader and writer must agree that it is a number.
_FLOAT_TAG = "tag:yaml.org,2002:float"
_EXPONENT_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """Safe YAML with `1e-4` as a number and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node.value, str):
                continue
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key_node.value!r} twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The writer that `_Loader` reads back unchanged."""


for _end in (_Loader, _Dumper):
    _end.add_implicit_resolver(_FLOAT_TAG, _EXPONENT_FLOAT, list("-+0123456789"))


class Config(BaseModel):
    """Base of every configuration. Unknown keys are refused and instances are frozen.

    `presets` maps a name to values (nested mappings) that `resolve` puts over the class defaults. `elsewhere` maps the
    path of a nested field that is not to be given here to what is to be given instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def resolve(
        cls,
        preset: str | None = None,
        file: Path | None = None,
        overrides: Iterable[str] = (),
        values: Mapping[str, Any] | None = None,
    ) -> Self:
        """Defaults, then `preset`, then the YAML `file`, then `overrides` such as `optimizer.lr=1e-3`, then `values`.

        Override values are read as YAML (`8`, `true`, `null`, `[a, b]`); where the field is text, as they stand.
        Raises `ConfigError`.
        """
        layers: list[tuple[str, dict[str, Any]]] = [("the defaults", _nested_defaults(cls))]
        if preset is not None:
            if preset not in cls.presets:
                raise ConfigError(unknown_name("preset", preset, cls.presets))
            layers.append((f"preset {preset!r}", _merged({}, cls.presets[preset])))
        if file is not None:
            layers.append((f"file {str(file)!r}", _read_yaml(Path(file))))
        given: dict[str, Any] = {}
        raw: dict[tuple[str, ...], str] = {}
        for override in overrides:
            path, text = _split_override(override)
            raw[path] = text
            _put(given, path, _parse_value(override, text, _is_text(cls, path)))
        layers.append((COMMAND_LINE, given))
        layers.append(("the call", _merged({}, values or {})))
        for label, layer in layers[1 + (preset is not None) :]:
            for name, instead in cls.elsewhere.items():
                if _holds(layer, tuple(name.split("."))):
                    raise ConfigError(f"given {name} (from {label}), expected {instead}")
        return _validated(cls, layers, raw)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The configuration that `save` wrote at `path`; keys it lacks take their defaults."""
        return cls.resolve(file=path)

    def save(self, path: Path) -> None:
        """Write every resolved value to `path` as YAML."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """Every resolved value as YAML, in the order of the fields."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


ConfigT = TypeVar("ConfigT", bound=Config)


def _validated(
    cls: type[ConfigT], layers: list[tuple[str, dict[str, Any]]], raw: dict[tuple[str, ...], str]
) -> ConfigT:
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = _merged(values, layer)
    for last_try in (False, True):
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            details = error.errors(include_url=False)
            as_text = {_path(e) for e in details if e["type"] in ("string_type", "path_type")} & set(raw)
            if last_try or not as_text:
                raise ConfigError("; ".join(_explain(cls, e, layers) for e in details)) from error
            for path in as_text:  # `name=1.10` is the text "1.10" where the field is text
                _put(values, path, raw[path])
    raise AssertionError("unreachable: the second try returns or raises")


def _explain(cls: type[Config], error: ErrorDetails, layers: list[tuple[str, dict[str, Any]]]) -> str:
    path = _path(error)
    name = ".".join(path)
    if error["type"] == "missing":
        return f"{name!r} is required and was not given; set it as {name}=VALUE"
    source = next((label for label, layer in reversed(layers) if _holds(layer, path)), layers[0][0])
    if error["type"] == "extra_forbidden":
        parent = ".".join(path[:-1])
        known = _keys_at(cls, path[:-1])
        return unknown_name(f"key of {parent!r}" if parent else "key", path[-1], known) + f" (from {source})"
    expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if not path:  # a check over several fields
        return expected
    if error["type"] == "value_error" and isinstance(error["input"], Mapping):  # the same of a nested configuration
        return f"{name!r}: {expected}"
    return f"{name!r}: given {error['input']!r} (from {source}), expected {expected}"


def _path(error: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in error["loc"])


def _holds(layer: dict[str, Any], path: tuple[str, ...]) -> bool:
    node: Any = layer
    for part in path:
        if isinstance(node, list):  # list items come from where the list came from
            return True
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _keys_at(cls: type[Config], path: tuple[str, ...]) -> list[str]:
    """Field names of the configuration nested at `path`."""
    models: list[type[BaseModel]] = [cls]
    for part in path:
        found = [m for model in models if (f := model.model_fields.get(part)) for m in _models_in(f.annotation)]
        models = found or models  # parts such as list indices and union tags name no field
    return sorted({name for model in models for name in model.model_fields})


def _is_text(cls: type[Config], path: tuple[str, ...]) -> bool:
    """Whether the field at `path` is text or a path, and nothing else that YAML knows."""
    models: list[type[BaseModel]] = [cls]
    for part in path[:-1]:
        models = [m for model in models if (f := model.model_fields.get(part)) for m in _models_in(f.annotation)]
    kinds = [f.annotation for model in models if (f := model.model_fields.get(path[-1]))]
    return bool(kinds) and all({*(get_args(kind) or [kind])} <= {str, Path, type(None)} for kind in kinds)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _nested_defaults(cls: type[Config]) -> dict[str, Any]:
    """Defaults of nested configurations, written out so that overriding one key keeps its siblings."""
    defaults = {
        name: f.get_default(call_default_factory=True) for name, f in cls.model_fields.items() if not f.is_required()
    }
    return {name: value.model_dump() for name, value in defaults.items() if isinstance(value, BaseModel)}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = _merged(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        below = values.get(part)
        values[part] = dict(below) if isinstance(below, dict) else {}
        values = values[part]
    values[path[-1]] = value


def _split_override(override: str) -> tuple[tuple[str, ...], str]:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"given {override!r}, expected an override of the form key=value or key.sub=value")
    return path, text


def _parse_value(override: str, text: str, is_text: bool) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except YAML_ERRORS as error:
        if is_text:
            return text
        raise ConfigError(
            f"given {override!r}, expected a YAML value after '=' ({yaml_problem(error)}); quote it"
        ) from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"given the config file {str(file)!r}, expected a YAML file; there is none there") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {str(file)!r} is not UTF-8 text; save it as UTF-8") from error
    except YAML_ERRORS as error:
        raise ConfigError(f"config file {str(file)!r} is not valid YAML: {yaml_problem(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError(f"config file {str(file)!r} holds a {kind}, expected 'key: value' lines at the top level")
    return {str(key): value for key, value in values.items()}


def yaml_problem(error: Exception) -> str:
    """What PyYAML could not read, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return f"{line}{error.problem}"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if not isinstance(error, (yaml.YAMLError, ValueError)):
        return "a value does not fit its tag"
    return " ".join(str(error).split())
