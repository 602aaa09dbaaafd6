"""The sections of a run's settings, one file each; `RunConfig` is all of them in one flat schema."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """Settings that belong together. A field's docstring is its help, as flag and in docs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
