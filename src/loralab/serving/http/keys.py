"""Who may ask: a TOML file of tenants, each with a key, quotas and the adapters it may use."""

import hashlib
import hmac
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loralab.errors import ConfigError, did_you_mean
from loralab.serving.errors import Forbidden
from loralab.serving.http.errors import Unauthorized

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ADMIN", "ANYONE", "Keys", "Tenant", "read_keys"]

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1)]


class Tenant(BaseModel):
    """One that may ask, and how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    key: Annotated[str, Field(min_length=1)] | None = None
    key_sha256: _Sha256 | None = None
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    max_running: _Count | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    adapters: tuple[str, ...] = ("*",)

    def may_use(self, adapter: str) -> bool:
        """Return whether one of the patterns matches; the base ("") is everybody's."""
        return not adapter or any(fnmatchcase(adapter, pattern) for pattern in self.adapters)

    def check(self, model: str) -> None:
        """Refuse a model, or a stack of them, that is not for this tenant.

        Raises:
            Forbidden: it is not.
        """
        for part in model.split("+"):
            adapter = part.partition(":")[0]
            if not self.may_use(adapter):
                raise Forbidden(f"adapter {adapter!r} is not among those that {self.name!r} may use.")


class _File(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    admin_key: Annotated[str, Field(min_length=1)] | None = None
    admin_key_sha256: _Sha256 | None = None
    tenant: tuple[Tenant, ...] = ()


ANYONE = Tenant(name="anyone")
"""Who asks where no keys are in force."""

ADMIN = Tenant(name="admin")
"""Who has the admin key."""


@dataclass(frozen=True)
class _Secret:
    digest: bytes
    tenant: Tenant


class Keys:
    """The keys in force. Only their sha256 is kept."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises as `read_keys`."""
        self.path = path
        self._secrets = read_keys(path)

    def reread(self) -> None:
        """Take the file as it is now; one that has a fault changes nothing. Raises as `read_keys`."""
        self._secrets = read_keys(self.path)

    def find(self, authorization: str) -> Tenant:
        """Return who has the key of an Authorization header.

        Raises:
            Unauthorized: there is no key, or nobody has it.
        """
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("no API key; send it as the header 'Authorization: Bearer KEY'.")
        digest = _digest(key.strip())
        found = None
        # Every key is compared, and in constant time, so that the time tells nothing.
        for secret in self._secrets:
            if hmac.compare_digest(digest, secret.digest):
                found = secret.tenant
        if found is None:
            raise Unauthorized("the API key is not a valid one.")
        return found

    @property
    def tenants(self) -> int:
        """How many may ask, the administrator not counted."""
        return sum(secret.tenant is not ADMIN for secret in self._secrets)

    @property
    def readable_by_others(self) -> bool:
        """Whether others than its owner may read the file."""
        return bool(self.path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def read_keys(path: Path) -> tuple[_Secret, ...]:
    """Return the keys in a file.

    Raises:
        ConfigError: it cannot be read, or has a fault; the line is named.
    """
    try:
        text = path.read_text(encoding="utf8")
        file = _File(**tomllib.loads(text))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a TOML file of keys."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    except ValidationError as error:
        raise ConfigError(_explained(path, text, dict(error.errors()[0]))) from None
    return _secrets(path, text, file)


def _secrets(path: Path, text: str, file: _File) -> tuple[_Secret, ...]:
    entries: list[tuple[Tenant, str | None, str | None, tuple[Any, ...], str]] = [
        (tenant, tenant.key, tenant.key_sha256, ("tenant", index), "key")
        for index, tenant in enumerate(file.tenant)
    ]
    if file.admin_key or file.admin_key_sha256:
        entries.append((ADMIN, file.admin_key, file.admin_key_sha256, ("admin_key",), "admin_key"))
    if not entries:
        raise ConfigError(f"{path}: no keys in it; expected an admin_key, or [[tenant]] with name and key.")
    secrets: dict[bytes, _Secret] = {}
    names: set[str] = set()
    for tenant, key, digest, place, field in entries:
        where = f"{path}:{_line(text, place)}: "
        if (key is None) == (digest is None):
            said = "has both {} and {}" if key is not None else "has neither {} nor {}"
            fields = said.format(field, f"{field}_sha256")
            raise ConfigError(f"{where}{tenant.name!r} {fields}; give one of them.")
        if tenant.name in names or (tenant.name == ADMIN.name and tenant is not ADMIN):
            raise ConfigError(f"{where}the name {tenant.name!r} is taken.")
        names.add(tenant.name)
        found = _digest(key) if key is not None else bytes.fromhex(str(digest))
        if found in secrets:
            other = secrets[found].tenant.name
            raise ConfigError(f"{where}{tenant.name!r} has the key of {other!r}; each needs its own.")
        # What is compared is the digest; the key itself is not kept.
        kept = ADMIN if tenant is ADMIN else tenant.model_copy(update={"key": None, "key_sha256": None})
        secrets[found] = _Secret(found, kept)
    return tuple(secrets.values())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf8", "surrogateescape")).digest()


def _explained(path: Path, text: str, fault: Mapping[str, Any]) -> str:
    place = tuple(fault["loc"])
    name = str(place[-1])
    where = f"{path}:{_line(text, place)}: "
    if fault["type"] == "extra_forbidden":
        known = Tenant.model_fields if place[0] == "tenant" else _File.model_fields
        return f"{where}unknown field {name!r}.{did_you_mean(name, known)}"
    if fault["type"] == "missing":
        return f"{where}a tenant needs the field {name!r}."
    message = str(fault["msg"])
    # A key that is at fault is not repeated.
    shown = "" if "key" in name else f" is {fault['input']!r}"
    return f"{where}{name}{shown}: {message[0].lower()}{message[1:]}."


def _line(text: str, place: tuple[Any, ...]) -> int:
    """Return the line of a field, or of the table that should have it."""
    lines = list(enumerate(text.splitlines(), start=1))
    first = 1
    if len(place) > 1 and isinstance(place[1], int):
        heads = [number for number, line in lines if re.match(rf"\s*\[\[\s*{place[0]}\s*\]\]", line)]
        if place[1] < len(heads):
            first = heads[place[1]]
    names = [str(part) for part in reversed(place) if isinstance(part, str)]
    for name in names:
        for number, line in lines[first - 1 :]:
            if re.match(rf"\s*[\"']?{re.escape(name)}(_sha256)?[\"']?\s*=", line):
                return number
            if number > first and re.match(r"\s*\[", line):
                break
    return first
