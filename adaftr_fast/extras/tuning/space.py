"""The space of a search: the options that vary, and their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.errors import ConfigError
from adaftr_fast.files.json import dumps, from_json
from adaftr_fast.files.toml import loads_toml, to_toml

if TYPE_CHECKING:
    from optuna.trial import Trial

OWN_OPTIONS = "model.options."
PLAIN = (int, float, str)  # what a study stores of choices as it is; True would equal 1


@dataclass(frozen=True)
class Parameter:
    """The values of one option: ``choices``, or a range of numbers.

    Attributes:
        choices: the values to choose from; None for a range.
        low, high: the range, with both ends.
        log: whether the logarithm of the value is uniform, instead of the value.
        step: the distance of two values. None is 1 for integers.
        int: whether the value is an integer; known for the options of a run, but not for those of a
            class.
    """

    choices: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    int: bool = False

    def suggest(self, trial: Trial, name: str) -> Any:
        """Returns the value of a trial."""
        if self.choices is not None:
            labels: dict[Any, Any] = {
                each if type(each) in PLAIN else dumps(each): each for each in self.choices
            }
            return labels[trial.suggest_categorical(name, list(labels))]
        low, high = self.bounds()
        if self.int:
            step = 1 if self.step is None else round(self.step)
            return trial.suggest_int(name, round(low), round(high), log=self.log, step=step)
        return trial.suggest_float(name, low, high, log=self.log, step=self.step)

    def bounds(self) -> tuple[float, float]:
        """Returns the ends of the range. Raises ValueError unless it is one."""
        if self.low is None or self.high is None:
            raise ValueError("expected choices, or low and high")
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"expected {'0 < ' if self.log else ''}low < high, got {self.low:g} and "
                f"{self.high:g}"
            )
        if self.log and self.step is not None:
            raise ValueError("expected log or step, got both")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"expected step > 0, got {self.step:g}")
        numbers = [each for each in (self.low, self.high, self.step) if each is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"expected finite numbers, got {', '.join(map(str, numbers))}")
        if self.int and not all(each == round(each) for each in numbers):
            raise ValueError("expected integers for an integer option")
        return self.low, self.high

    def examples(self) -> list[Any]:
        """Returns the values that stand for all: the choices, or the ends of the range. Raises
        ValueError.
        """
        if self.choices is None:
            return [round(each) if self.int else each for each in self.bounds()]
        if (
            not self.choices
            or self.low is not None
            or self.high is not None
            or self.log
            or self.step is not None
        ):
            raise ValueError("expected one or more choices, or a range, got both or neither")
        return self.choices


Space = dict[str, Parameter]


def read_space(path: Path, config: RunConfig) -> Space:
    """Reads a TOML file with a table per option: ``"optimizer.lr" = { low = 1e-4, high = 1e-2, log
    = true }``.

    Args:
        path: the file. The names of options may be quoted or not.
        config: the configuration whose options vary.

    Raises:
        ConfigError: the file is not TOML, or as ``parse_space``.
        OSError: the file cannot be read.
    """
    try:
        return parse_space(loads_toml(path.read_text(encoding="utf-8")), config)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_space(content: dict[str, Any], config: RunConfig) -> Space:
    """Reads a space, and checks that ``config`` takes each of its values.

    Raises:
        ConfigError: an option is unknown, a value is none of the option's, or a key is unknown or
            missing.
    """
    space = {}
    for name, value in _flat(content).items():
        hint = _type(name)
        try:
            parameter = from_json(Parameter, value)
            if hint in (int, int | None):
                parameter = replace(parameter, int=True)
            to_toml({"choices": parameter.examples()})  # as best.toml holds the best of them
            for example in parameter.examples():
                apply(config, {name: example})
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        space[name] = parameter
    if not space:
        raise ConfigError("expected one or more options, got none")
    return space


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of unquoted names, which are nested tables, by the whole name."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        inner = name in SECTIONS or f"{name}." == OWN_OPTIONS
        if inner and isinstance(value, dict):
            flat |= _flat({f"{name}.{key}": each for key, each in value.items()})
        else:
            flat[name] = value
    return flat


def _type(name: str) -> Any:
    """Returns the type of an option. Raises ConfigError if the option does not exist or cannot
    vary.
    """
    if name.startswith(OWN_OPTIONS):
        return Any
    if name == "training.validate_every":
        raise ConfigError(f"{name}: cannot vary, since trials are compared at equal epochs")
    section, _, option = name.partition(".")
    if name not in RunConfig().flat() or section == "data":
        but = "data.folder and model.preset"
        raise ConfigError(
            f"unknown option {name!r}; expected one of adaftr-fast train --help but {but}"
        )
    return get_type_hints(SECTIONS[section])[option]


def apply(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Returns ``config`` with other values of some options, by name. Raises ConfigError if one is
    out of range.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, option = name.partition(".")
        options = sections.setdefault(section, {})
        if name.startswith(OWN_OPTIONS):
            own = options.get("options", config.model.options)
            options["options"] = own | {name.removeprefix(OWN_OPTIONS): value}
        else:
            options[option] = value
    return config.with_options(**sections)


def default_space(config: RunConfig) -> Space:
    """Returns the options that matter most for ``config.model.name``."""
    content: dict[str, Any] = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.l2": {"low": 1e-8, "high": 1e-4, "log": True},
    }
    if not config.model.is_own:
        content |= {
            "model.embedding_dim": {"choices": [8, 16, 32]},
            "model.tower_hidden": {"choices": [[64, 32, 16], [128, 64, 32], [64, 32]]},
            "model.expert_hidden": {"choices": [[64], [128], [128, 64]]},
        }
    if config.model.name == "adaftr":
        content["model.beta"] = {"low": 1e-3, "high": 1.0, "log": True}
    return parse_space(content, config)
