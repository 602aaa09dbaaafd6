"""Files of a repository: from a folder, or from the hub."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = ["HubOptions", "find_folder", "hub_answers", "upload_folder"]

# huggingface_hub is imported where it is used: `core` reads configs through this file, and needs torch alone.

_OTHER_NAMES = {"use_auth_token": "token"}


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How to look a repository up. Names are huggingface_hub's."""

    subfolder: str | None = None
    """The folder inside the repository, or inside the local folder."""
    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False
    repo_type: str | None = None

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any], where: str) -> "HubOptions":
        """Return the options that a caller of `where` gave as keywords.

        Raises:
            ConfigError: a keyword is none of these; it would do nothing.
        """
        known = {f.name for f in fields(cls)}
        given = {_OTHER_NAMES.get(name, name): value for name, value in keywords.items()}
        for name, value in given.items():
            if name not in known and value is not None:
                raise ConfigError(f"{where}: {name}={value!r} has no effect here.{did_you_mean(name, known)}")
        return cls(**{name: value for name, value in given.items() if name in known and value is not None})


def find_folder(
    name: str | Path, patterns: Sequence[str], options: HubOptions | None = None, what: str = "adapter"
) -> Path:
    """Return a local folder with the files of `name`: a folder, else a repository on the hub.

    From the hub come the files that match `patterns`, in the subfolder if one is asked for.

    Raises:
        AdapterError: neither a folder nor a repository that can be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options = options or HubOptions()
    inside = options.subfolder or ""
    # os.path answers no where Path raises, as for a name that is too long.
    if os.path.isdir(name):
        return Path(name, inside)
    repository = str(name)
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise AdapterError(f"{name}: no such folder; expected one, or a hub id like 'org/name'.")
    offline = options.local_files_only or not hub_answers(repository, patterns[0])
    try:
        folder = snapshot_download(
            repository,
            allow_patterns=[os.path.join(inside, pattern) for pattern in patterns],
            revision=options.revision,
            cache_dir=options.cache_dir,
            token=options.token,
            local_files_only=offline,
            force_download=options.force_download,
            repo_type=options.repo_type,
        )
    except LocalEntryNotFoundError:
        reason = "not in the cache here, and the hub could not be reached"
        raise AdapterError(f"{name}: no {what} there: not a folder, {reason}.") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise AdapterError(f"{name}: no {what} there: not a folder, not on the hub ({reason})") from None
    return Path(folder, inside)


def hub_answers(name: str, file: str) -> bool:
    """Return whether the hub can be asked, or need not be because `file` is in the cache.

    Its own client would try for half a minute.
    """
    from huggingface_hub import is_offline_mode, try_to_load_from_cache
    from huggingface_hub.constants import ENDPOINT

    if is_offline_mode() or isinstance(try_to_load_from_cache(name, file), str):
        return True
    url = urlsplit(ENDPOINT)
    if getproxies().get(url.scheme):
        return True
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def upload_folder(folder: Path, repo_id: str, options: Mapping[str, Any]) -> str:
    """Upload what is in `folder` to the hub and return the address of the commit.

    `options` are those of huggingface_hub's ``upload_folder``, and `private`; the repository is made if there
    is none.

    Raises:
        AdapterError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi(token=options.get("token"))
    commit = {name: value for name, value in options.items() if name not in ("private", "token")}
    try:
        repository = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repository, folder_path=folder, **commit))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise AdapterError(f"{repo_id}: not uploaded ({reason})") from None
