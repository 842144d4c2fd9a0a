"""The configuration of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from adaftr_fast._json import from_json, loads_toml
from adaftr_fast.config.model import ModelConfig
from adaftr_fast.config.options import Section, names, option
from adaftr_fast.config.presets import preset
from adaftr_fast.config.training import DataConfig, OptimizerConfig, TrainingConfig
from adaftr_fast.errors import ConfigError

SECTIONS: dict[str, type[Section]] = {
    each.section: each for each in (DataConfig, ModelConfig, OptimizerConfig, TrainingConfig)
}


@dataclass
class WarmStartConfig(Section):
    """The run whose weights to start from."""

    section = "warm_start"

    run: str = option()
    """Folder of the run."""
    task: str = option("", omit_default=True)
    """Task of a single_dnn whose tables become the shared ones; "" is the first task of the new model that it has."""
    allow_empty: bool = option(False, omit_default=True)
    """Whether training may start although no weight of the run fits."""


@dataclass
class RunConfig:
    """The configuration of a run.

    Attributes:
        data: the data options.
        model: the model options.
        optimizer: the optimizer options.
        training: the training options.
        warm_start: the run whose weights to copy. None starts from random weights.

    Raises:
        ConfigError: a section is not of its type; ``from_dict`` reads dictionaries.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    warm_start: WarmStartConfig | None = None

    def __post_init__(self) -> None:
        for name, section in SECTIONS.items():
            if not isinstance(value := getattr(self, name), section):
                raise ConfigError(f"RunConfig: {name} must be a {section.__name__}, got {value!r}")

    @classmethod
    def from_dict(cls, sections: Any) -> RunConfig:
        """Reads the output of ``to_dict`` or a part of it; missing options have their defaults.

        ``model.class`` is another name of ``model.name``. ``model.preset`` stands for the options of a preset, which
        the other options override.

        Raises:
            ConfigError: a key is unknown, or a value has another type or is out of range.
        """
        try:
            return from_json(cls, _expanded(sections), "config")
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def from_toml(cls, path: str | Path) -> RunConfig:
        """Reads a TOML file with one table per section.

        Raises:
            ConfigError: the file is not valid TOML, or as ``from_dict``.
            OSError: the file cannot be read.
        """
        try:
            return cls.from_dict(loads_toml(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error

    def with_options(self, **sections: dict[str, Any]) -> RunConfig:
        """Returns a copy with other values of some options, given by section as in ``from_dict``.

        Raises:
            ConfigError: a section or option is unknown, or a value is out of range.
        """
        changed = {}
        for name, options in _expanded(sections).items():
            if name not in SECTIONS:
                raise ConfigError(f"config: expected one of {', '.join(SECTIONS)}, got {name!r}")
            known = [each.name for each in fields(SECTIONS[name])]
            for option_name in options:
                if option_name not in known:
                    raise ConfigError(f"{name}: unknown option {option_name!r}; expected one of {', '.join(known)}")
            changed[name] = replace(getattr(self, name), **options)
        return replace(self, **changed)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns the options by section, as in JSON and TOML. Those of a warm start are left out at their defaults."""
        sections = {name: section for name, section in asdict(self).items() if section is not None}
        if self.warm_start is not None:
            default = asdict(WarmStartConfig(self.warm_start.run))
            given = sections["warm_start"].items()
            sections["warm_start"] = {key: value for key, value in given if key == "run" or value != default[key]}
        return sections

    def flat(self) -> dict[str, Any]:
        """Returns the options as ``section.option`` -> value."""
        return {f"{name}.{key}": value for name, section in self.to_dict().items() for key, value in section.items()}

    def identity(self) -> dict[str, dict[str, Any]]:
        """Returns the options that determine the result of a run in one process, together with the data."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "optimizer", "training")}
        for name, section in sections.items():
            default = asdict(SECTIONS[name]())
            same = {key for key in names(SECTIONS[name], "omit_default") if section[key] == default[key]}
            kept = set(names(SECTIONS[name], "identifies")) - same
            sections[name] = {key: value for key, value in section.items() if key in kept}
        return sections


def _expanded(sections: Any) -> Any:
    """Replaces ``model.class`` by ``model.name`` (a field cannot be called "class"), and ``model.preset``."""
    model = sections.get("model") if isinstance(sections, dict) else None
    if not isinstance(model, dict):
        return sections
    if "class" in model and "name" in model:
        raise ConfigError("config.model: expected name or class, got both")
    options = {"name" if key == "class" else key: value for key, value in model.items() if key != "preset"}
    return sections | {"model": (preset(model["preset"]) if "preset" in model else {}) | options}


FREE_ON_RESUME = {f"{name}.{each}" for name, section in SECTIONS.items() for each in names(section, "free_on_resume")}
"""Options that may have other values when a run resumes."""
