"""What /v1/completions takes."""

from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from loralab.serving.http.fields import GenerationBody, Only

__all__ = ["CompletionBody"]

_Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]


class CompletionBody(GenerationBody):
    """Text to go on with, as it stands."""

    prompt: (
        str | _Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[_Ids], Field(min_length=1)]
    )
    """A text, several, the token ids of one, or of several. Each gets a choice of its own."""
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Annotated[Any, Only(False)] = None
    suffix: Annotated[Any, Only("")] = None
    best_of: Annotated[Any, Only(1)] = None

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _one_of_four(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            # Its faults are those of all four kinds, and the first would be told.
            raise PydanticCustomError(
                "prompt", "expected a text, a list of texts, token ids, or a list of token ids"
            ) from None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]
