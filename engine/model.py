"""The base of every frozen value that is also JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

__all__ = ["ByteCount", "Model", "canonical_json"]

ByteCount = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
"""A number of bytes, as OCI's descriptor allows it (int64, not negative)."""


class Model(BaseModel):
    """A frozen value; camelCase as JSON, snake_case in Python.

    Unknown JSON members are ignored here: documents that must keep them keep
    their raw bytes.
    """

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may be a secret in the wrong place
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def canonical_json(value: object) -> bytes:
    """``value`` as JSON in its canonical form: sorted, compact, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
