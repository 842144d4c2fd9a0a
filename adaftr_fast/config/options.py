"""Declares options: each field of a section states its default, its range and whether it identifies
a run.

The attribute docstring of a field is its help text on the command line and names the paper's
equation, if there is one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from adaftr_fast.errors import ConfigError
from adaftr_fast.files.json import from_json, shown


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of a number.

    Attributes:
        low, high: the bounds.
        above, below: whether ``low`` and ``high`` are excluded.
        noun: the kind of number, for error messages.
        infinite: whether infinity is allowed.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    noun: str = "number"
    infinite: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return low and high and (self.infinite or value < math.inf)

    def __str__(self) -> str:
        if self.high < math.inf:
            start = "(" if self.above else "["
            end = ")" if self.below else "]"
            return f"a {self.noun} in {start}{self.low}, {self.high}{end}"
        relation = f"{'>' if self.above else '>='} {self.low}"
        return f"a {self.noun} {relation}" if self.infinite else f"a finite {self.noun} {relation}"


AT_LEAST_0 = Range(0)
AT_LEAST_1 = Range(1)
WEIGHT = Range(0, noun="weight")
DECAY = Range(0, 1, below=True, noun="decay")


def option(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | Any = dataclasses.MISSING,
    within: Range | None = None,
    identifies: bool = True,
    free_on_resume: bool = False,
    omit_default: bool = False,
) -> Any:
    """Declares a field of a section.

    Args:
        default, factory: the default value, or a function that returns it.
        within: the range of the number, of every number of a non-empty list, or of every value of a
            dict.
        identifies: whether the result of a run in one process depends on the option.
        free_on_resume: whether a run may resume with another value.
        omit_default: whether ``RunConfig.identity`` leaves the option out at its default, so that
            runs from before the option existed are found again.
    """
    metadata = {
        "within": within,
        "identifies": identifies,
        "free_on_resume": free_on_resume,
        "omit_default": omit_default,
    }
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Section:
    """A group of options, checked on construction. Subclasses are dataclasses; ``section`` is the
    name of the group.

    Raises:
        ConfigError: an option is out of range or not among its choices.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            hint = hints[field.name]
            try:  # as a checkpoint would hold it, for example a float for 1
                converted = from_json(hint, value, f"{self.section}.{field.name}")
            except ValueError as error:
                raise ConfigError(str(error)) from error
            if (within := field.metadata.get("within")) is not None:
                self._check_range(field.name, hint, value, within)
            setattr(self, field.name, converted)

    def _check_range(self, name: str, hint: Any, value: Any, within: Range) -> None:
        if get_origin(hint) is dict:
            if not all(each in within for each in value.values()):
                raise self.error(name, f"widths >= {within.low:g}", value)
        elif get_origin(hint) is list:
            if not value or not all(each in within for each in value):
                raise self.error(name, f"one or more widths >= {within.low:g}", value)
        elif value is None and type(None) in get_args(hint):
            return
        elif value not in within:
            raise self.error(
                name,
                f">= {within.low:g}" if hint is int and within.high == math.inf else within,
                value,
            )

    def error(self, name: str, expected: object, got: object) -> ConfigError:
        """Returns the error for an invalid value of an option."""
        return ConfigError(f"{self.section}.{name}: expected {expected}, got {shown(got)}")
