"""What the sections of a config share: their base class, and the checks of keys in more than one of them."""

import json
from types import NoneType
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo


class Section(BaseModel):
    """A section of a config: immutable, refuses unknown keys, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Unused(NamedTuple):
    """The context of a validation: the keys that overrides set, and messages on values of the file without effect."""

    overridden: set[str]
    messages: dict[str, str]


def refuse_unused(section: type[BaseModel], key: str, value: Any, reason: str, info: ValidationInfo) -> Any:
    """Refuse a key without effect if an override sets it; note a file's value, other than the default, as unused.

    A config file holds the keys of several kinds, so that one override changes the kind; a run's own config.yaml holds
    all. A whole section that is overridden counts as a file's.
    """
    path, differs = f"{section.__name__.lower()}.{key}", value != section.model_fields[key].default
    context: Unused | None = info.context
    if differs if context is None else path in context.overridden:
        raise ValueError(f"{reason}; or leave it out")
    if differs and context is not None:
        context.messages[path] = f"{path}={json.dumps(value)} has no effect: it {reason}"
    return value


def as_list(value: Any) -> Any:
    """Return a list of the value, which may be one already; null stays null."""
    return value if isinstance(value, (list, tuple, NoneType)) else [value]


def check_warmup(section: type[BaseModel], value: float, info: ValidationInfo) -> float:
    """Refuse a warm-up that is longer than the training, unless its length is the default."""
    epochs = info.data.get("epochs", value) - info.data.get("head_epochs", 0)
    default = section.model_fields["warmup_epochs"].default
    if value > epochs and value != default:
        whole = " of the whole network" if info.data.get("head_epochs") else ""
        raise ValueError(f"the training has {epochs} epochs{whole}; set it to these at most, or leave it at {default}")
    return value
