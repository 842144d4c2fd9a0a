"""Builds a model from its configuration: one of this package, or a class of one's own named as
``module:Class``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.config.model import MODELS
from adaftr_fast.errors import ConfigError
from adaftr_fast.models.base import Backbone, MultiTaskModel, PlainModule
from adaftr_fast.nn.encoding import NumericEncoding

ARGUMENTS = ("num_embeddings", "task_names", "config", "field_names")
ModelClass = str | type[nn.Module]
"""A class, or its name as ``module:Class``."""


def class_name(model_class: ModelClass) -> str:
    """Returns the name by which ``find_class`` finds a class. Raises ConfigError if it is local to
    a function.
    """
    if isinstance(model_class, str):
        return model_class
    name = f"{model_class.__module__}:{model_class.__qualname__}"
    if "<locals>" in name:
        raise ConfigError(f"model: {name} is local to a function; define it at the top of a module")
    return name


def find_class(model_class: ModelClass) -> Callable[..., MultiTaskModel]:
    """Imports a class by its name, and checks that the trainer can build it.

    Args:
        model_class: a subclass of ``MultiTaskModel``, or its name. Its constructor takes
            ``ARGUMENTS``, and ``dense`` where the data have dense fields. Any other
            ``torch.nn.Module`` whose constructor has parameters of these names, in any order,
            becomes a ``PlainModule``, whose ``forward`` takes what the data have.

    Returns:
        A function of ``ARGUMENTS`` and ``dense`` that builds the model. It raises ConfigError where
        the class raises ValueError, or its constructor or ``forward`` lacks ``dense``.

    Raises:
        ConfigError: there is no such module or class, it is not a model, or its constructor or
            ``forward`` takes other arguments.
        Exception: whatever the module raises.
    """
    name = class_name(model_class)
    found = _imported(name) if isinstance(model_class, str) else model_class
    if not (isinstance(found, type) and (issubclass(found, MultiTaskModel) or _is_plain(found))):
        plain = f"a torch.nn.Module that takes ({', '.join(ARGUMENTS)})"
        raise _own_error(
            name,
            f"expected a subclass of adaftr_fast.models.MultiTaskModel or {plain}, got {found!r}",
        )
    if inspect.isabstract(found):
        missing = sorted(vars(found)["__abstractmethods__"])
        raise _own_error(name, f"is abstract: it lacks {', '.join(missing)}")
    construct: Callable[..., nn.Module] = found
    signature = inspect.signature(found)
    by_name = not issubclass(found, MultiTaskModel)
    if not _takes(signature, by_name):
        taken = ", ".join(signature.parameters)
        raise _own_error(name, f"expected ({', '.join(ARGUMENTS)}), got ({taken})")
    if by_name:
        check_forward(name, found)

    def build(
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
        dense: Sequence[NumericEncoding] = (),
    ) -> MultiTaskModel:
        data = (num_embeddings, task_names, config, field_names)
        if dense and not _takes(signature, by_name, dense=dense):
            raise _own_error(
                name,
                "the data have dense fields, expected a constructor that takes dense, got "
                f"{signature}",
            )
        if dense and by_name:
            check_forward(name, found, dense=dense)
        try:
            more = {"dense": dense} if dense else {}
            built = (
                construct(**dict(zip(ARGUMENTS, data)), **more)
                if by_name
                else construct(*data, **more)
            )
            return built if isinstance(built, MultiTaskModel) else PlainModule(built, task_names)
        except ConfigError:
            raise
        except ValueError as error:
            raise _own_error(name, error) from error

    return build


def _is_plain(found: type) -> bool:
    """Returns whether a class is a module whose constructor has parameters of the names
    ``ARGUMENTS``.
    """
    return issubclass(found, nn.Module) and set(ARGUMENTS) <= set(
        inspect.signature(found).parameters
    )


def _takes(signature: inspect.Signature, by_name: bool, **named: object) -> bool:
    """Returns whether a constructor takes ``ARGUMENTS``, by their places or by their names, and
    what is ``named``.
    """
    given = dict.fromkeys(ARGUMENTS)
    return _binds(signature, **given, **named) if by_name else _binds(signature, *given, **named)


def check_forward(name: str, found: type[nn.Module], **named: object) -> None:
    """Raises ConfigError unless a plain module takes ids, ``offsets`` and ``dense`` if it has them,
    and ``named``.

    Args:
        named: those of ``offsets`` and ``dense`` that the data have.
    """
    signature = inspect.signature(found.forward)
    parts = {part: None for part in ("offsets", "dense") if part in signature.parameters}
    if not _binds(signature, "self", "ids", **(parts | named)):
        expected = (
            "forward(self, ids), with offsets and dense where the data have multi-valued and dense "
            "fields"
        )
        raise _own_error(name, f"expected {expected}, got forward{signature}")


def _binds(signature: inspect.Signature, *args: object, **named: object) -> bool:
    try:
        signature.bind(*args, **named)
    except TypeError:
        return False
    return True


def _imported(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that this one imports
        raise _own_error(name, f"there is no module {error.name}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise _own_error(name, f"the module {module_name} has no class {path}")
        found = getattr(found, part)
    return found


def _own_error(name: str, problem: object) -> ConfigError:
    return ConfigError(f"model.name: {name}: {problem}")


def known_model(name: str) -> Callable[..., Any]:
    """Returns what builds a model of ``MODELS``, a function of ``ARGUMENTS`` and ``dense``; that of
    adaftr takes a backbone and the settings.
    """
    module, _, builder = MODELS[name].place.partition(":")
    found: Callable[..., Any] = getattr(
        importlib.import_module(f"adaftr_fast.models.{module}"), builder
    )
    return found


def build_model(
    config: ModelConfig,
    num_embeddings: Sequence[int],
    task_names: Sequence[str],
    field_names: Sequence[str] | None = None,
    dense: Sequence[NumericEncoding] = (),
) -> MultiTaskModel:
    """Builds the model ``config.name``. If that is a class of the user's own, its module is
    imported.

    Args:
        config: the settings of the model.
        num_embeddings: number of rows of each field, F numbers.
        task_names: T names, in the order of the columns of the labels.
        field_names: F names, which ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.

    Raises:
        ValueError: sizes or options that make no model, or a width for a field that is not there.
        ConfigError: as ``find_class``.
    """
    data = (num_embeddings, task_names, config, field_names, dense)
    if config.is_own:
        return find_class(config.name)(*data)
    name = config.backbone if config.name == "adaftr" else config.name
    model: MultiTaskModel = known_model(name)(*data)
    if config.wide and isinstance(model, Backbone) and not MODELS[name].needs_funnel:
        model.wide = known_model("linear")(num_embeddings, task_names, config, dense=dense)
        model.linear_model = known_model("linear")(num_embeddings, task_names, config, dense=dense)
    return known_model("adaftr")(model, config) if config.name == "adaftr" else model
