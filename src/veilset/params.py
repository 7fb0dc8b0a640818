"""The base of every parameter object: frozen, typed, strict about unknown keys and ranges."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from veilset.errors import SettingsError


class Params(BaseModel):
    """A frozen, validated block of parameters.

    Declare fields with `pydantic.Field(ge=..., le=..., description=...)`; unknown keys and values
    out of range are refused by name with the allowed range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Builds the object from plain values.

        Args:
            values: Field values by name, as read from YAML or `--set`.
            where: What the user calls this block, e.g. `params.yaml: scheme.visualmixer`.

        Raises:
            SettingsError: A key is unknown, missing or its value out of range; one sentence.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise SettingsError(_sentence(error, where, cls)) from None

    def canonical(self) -> str:
        """Canonical JSON of all values: what key derivation and hashes cover."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def _sentence(error: ValidationError, where: str, cls: type[Params]) -> str:
    """One sentence naming the key, its value, what is allowed, and how many further faults."""
    faults = error.errors(include_url=False)
    first = faults[0]
    path = ".".join(str(part) for part in first["loc"])
    key = f"{where}.{path}" if path else where
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(cls.model_fields))
        text = f"{key} is unknown: this block has {known or 'no settings'}"
    elif first["type"] == "missing":
        text = f"{key} is missing: give it a value"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        text = f"{key} is {first['input']!r}, but {reason}: change it"
    more = f" ({len(faults) - 1} more like it)" if len(faults) > 1 else ""
    return f"{text}{more}."
