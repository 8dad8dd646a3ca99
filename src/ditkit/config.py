"""The base of every configuration section: frozen, strict, JSON in and out."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One part's settings. Unknown fields are errors; a section never changes after it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
