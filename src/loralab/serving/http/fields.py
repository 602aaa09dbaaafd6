"""The fields of a request for text that OpenAI's two routes share."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from loralab.errors import did_you_mean
from loralab.serving.http.errors import UNKNOWN, UNSUPPORTED
from loralab.serving.sampling import Sampling

__all__ = ["Body", "GenerationBody", "Only", "StreamOptions", "refuse"]

_MOST = 1_000_000
_STOPS = 4


class Body(BaseModel):
    """A body of known fields and of text that can be encoded."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_and_whole(cls, values: Any) -> Any:
        if not _encodable(values):
            raise ValueError("there is half of a surrogate pair in a text, which is no character")
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                why = f"there is no such field here; leave it out.{did_you_mean(name, cls.model_fields)}"
                raise PydanticCustomError(UNKNOWN, "{why}", {"why": why, "field": name})
        return values


def _encodable(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, Mapping):
        return all(_encodable(key) and _encodable(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(_encodable(inner) for inner in value)
    return True


def refuse(message: str) -> PydanticCustomError:
    """Return the error for what is understood, but cannot be had here."""
    return PydanticCustomError(UNSUPPORTED, "{why}", {"why": message})


class Only:
    """Marks a field that may have these values, or null, and is refused otherwise.

    It is for what would change the answer and is not done here.
    """

    def __init__(self, *allowed: Any) -> None:
        self.allowed = allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": [None, *self.allowed]}

    def check(self, value: Any) -> Any:
        """Return the value, or raise what says that it cannot be had."""
        if value is None or any(_alike(value, one) for one in self.allowed):
            return value
        wanted = f"can do {' or '.join(map(repr, self.allowed))} only" if self.allowed else "cannot do this"
        raise refuse(f"this server {wanted}; leave the field out.")


def _alike(value: Any, allowed: Any) -> bool:
    """Whether two values are the same in JSON, where a truth value is no number."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _few_stops(stop: str | list[str] | None) -> str | list[str] | None:
    if isinstance(stop, list) and len(stop) > _STOPS:
        raise refuse(f"there are {len(stop)} stop texts; expected at most {_STOPS}.")
    return stop


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    """Count the tokens, in a last chunk of its own."""
    include_obfuscation: bool | None = None
    """OpenAI's padding against listeners; there is none here."""


class GenerationBody(Body):
    """What both routes take. Fields that change nothing here are taken and left aside."""

    model: str = Field(examples=["demo"])
    """The base's name, an adapter's name, "base:adapter", or a stack "one:0.7+other:0.3"."""
    max_tokens: int | None = Field(None, ge=1, le=_MOST)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    """0: the likeliest token each time. Left out: 1."""
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_MOST)
    """Draw from this many of the likeliest tokens; 0 and -1: from all."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Equal seeds give equal answers; left out, each is another."""
    stop: Annotated[str | list[str] | None, AfterValidator(_few_stops)] = None
    """Up to 4 texts at which the answer ends; they are not part of it."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    """Go on until max_tokens, for measurements."""

    n: Annotated[Any, Only(1)] = None
    frequency_penalty: Annotated[Any, Only(0)] = None
    presence_penalty: Annotated[Any, Only(0)] = None
    logit_bias: Annotated[Any, Only({})] = None

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options has an effect with stream only; leave it out, or set stream.")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def choice(self, max_new_tokens: int, logprobs: int | None) -> Sampling:
        """Return how the tokens are chosen. Raises as `Sampling`."""
        stop = () if self.stop is None else self.stop
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            seed=self.seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
        )
