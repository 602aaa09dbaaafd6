"""Keys: the file, who may do what, and how much of it."""

import hashlib
from pathlib import Path
from typing import Any

import openai
import pytest

from loralab.errors import ConfigError
from loralab.serving.errors import Overloaded
from loralab.serving.http.errors import Unauthorized
from loralab.serving.http.keys import ADMIN, Keys, Tenant
from loralab.serving.http.quota import Quotas

FILE = """
admin_key = "boss"

[[tenant]]
name = "acme"
key = "acme-1"
adapters = ["po*", "judge"]

[[tenant]]
name = "anyone"
key_sha256 = "{}"
adapters = []
""".format(hashlib.sha256(b"any-1").hexdigest())


def written(folder: Path, text: str) -> Path:
    """A file of keys that only its owner may read."""
    path = folder / "keys.toml"
    path.write_text(text, encoding="utf8")
    path.chmod(0o600)
    return path


def test_a_key_belongs_to_a_tenant(tmp_path: Path) -> None:
    keys = Keys(written(tmp_path, FILE))
    assert keys.find("Bearer acme-1").name == "acme"
    assert keys.find("bearer  any-1 ").name == "anyone"
    assert keys.find("Bearer boss") is ADMIN
    assert keys.tenants == 2
    for header in ("", "Bearer", "Bearer ", "Basic acme-1", "Bearer acme", "Bearer acme-1x", "Bearer \udcff"):
        with pytest.raises(Unauthorized):
            keys.find(header)
    assert "acme-1" not in repr(keys.find("Bearer acme-1"))


def test_others_should_not_read_the_file(tmp_path: Path) -> None:
    keys = Keys(written(tmp_path, FILE))
    assert not keys.readable_by_others
    keys.path.chmod(0o640)
    assert keys.readable_by_others


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("admin_key = 'a'\nadmin_kye = 'b'\n", 2, "unknown field 'admin_kye'.* Did you mean 'admin_key'"),
        (
            f"{FILE}\nrequest_per_minute = 3\n",
            14,
            "unknown field 'request_per_minute'.*'requests_per_minute'",
        ),
        (f"{FILE}\n[[tenant]]\nname = 'x'\n", 14, "'x' has neither key nor key_sha256"),
        (f"{FILE}\n[[tenant]]\nkey = 'x'\n", 14, "needs the field 'name'"),
        (f"{FILE}\n[[tenant]]\nname = 'acme'\nkey = 'x'\n", 14, "the name 'acme' is taken"),
        (f"{FILE}\n[[tenant]]\nname = 'x'\nkey = 'acme-1'\n", 14, "'x' has the key of 'acme'"),
        (f"{FILE}\n[[tenant]]\nname = 'x'\nkey = 'boss'\n", 2, "'admin' has the key of 'x'"),
        (f"{FILE}\nweight = 0\n", 14, "weight is 0: .*greater than 0"),
        (f"{FILE}\nmax_running = 'many'\n", 14, "max_running is 'many': .*integer"),
        ("admin_key = ''\n", 1, "admin_key: .*at least 1"),
        ("admin_key_sha256 = 'beef'\n", 1, "admin_key_sha256: "),
    ],
)
def test_a_fault_of_the_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Keys(written(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path}/keys.toml:{line}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "says"), [("x =", "not valid TOML"), ("", "no keys in it")])
def test_a_file_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Keys(written(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "missing.toml")


def test_a_faulty_file_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    keys = Keys(written(tmp_path, FILE))
    keys.path.write_text("admin_key = ", encoding="utf8")
    with pytest.raises(ConfigError):
        keys.reread()
    assert keys.find("Bearer acme-1").name == "acme"
    keys.path.write_text(FILE.replace("acme-1", "acme-2"), encoding="utf8")
    keys.reread()
    assert keys.find("Bearer acme-2").name == "acme"
    with pytest.raises(Unauthorized):
        keys.find("Bearer acme-1")


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_a_minute() -> None:
    clock, tenant = Clock(), Tenant(name="x", requests_per_minute=6)
    quotas = Quotas(clock)
    quotas.enter(tenant, 4)
    quotas.enter(tenant, 2)
    with pytest.raises(Overloaded, match="'x' may ask 6 times a minute") as caught:
        quotas.enter(tenant, 1)
    assert caught.value.retry_after == pytest.approx(10)
    clock.now = 10
    quotas.enter(tenant, 1)
    clock.now = 1000
    quotas.enter(tenant, 6)
    with pytest.raises(Overloaded):
        quotas.enter(tenant, 1)


def test_tokens_a_minute_are_counted_when_they_are_known() -> None:
    clock, tenant = Clock(), Tenant(name="x", tokens_per_minute=60)
    quotas = Quotas(clock)
    quotas.enter(tenant, 1)
    quotas.leave(tenant, 1, 100)
    with pytest.raises(Overloaded, match="60 tokens a minute") as caught:
        quotas.enter(tenant, 1)
    assert caught.value.retry_after == pytest.approx(41)
    clock.now = 41
    quotas.enter(tenant, 1)


def test_requests_at_once() -> None:
    tenant, other = Tenant(name="x", max_running=2), Tenant(name="y", max_running=2)
    quotas = Quotas(Clock())
    quotas.enter(tenant, 2)
    with pytest.raises(Overloaded, match="2 requests at once"):
        quotas.enter(tenant, 1)
    quotas.enter(other, 1)
    quotas.leave(tenant, 1, 5)
    quotas.enter(tenant, 1)
    assert (quotas.running(tenant), quotas.running(other)) == (2, 1)


@pytest.fixture(scope="module")
def locked(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with keys."""
    path = written(tmp_path_factory.mktemp("keys"), FILE)
    with serve(keys=Keys(path)) as server:
        yield server


ASKED = {"model": "poet", "prompt": "the dog", "max_tokens": 2}


@pytest.mark.parametrize(
    ("key", "model", "status"),
    [
        ("", "poet", 401),
        ("nobody", "poet", 401),
        ("acme-1", "poet", 200),
        ("acme-1", "tiny", 200),
        ("acme-1", "tiny:poet", 200),
        ("acme-1", "pirate", 403),
        ("acme-1", "tiny:pirate", 403),
        ("acme-1", "poet:0.5+judge:0.5", 200),
        ("acme-1", "poet:0.5+pirate:0.5", 403),
        ("acme-1", "parrot", 404),
        ("any-1", "poet", 403),
        ("any-1", "tiny", 200),
        ("boss", "judge", 200),
    ],
)
def test_who_may_ask_whom(locked: Any, key: str, model: str, status: int) -> None:
    reply = locked.post("/v1/completions", {**ASKED, "model": model}, key=key or "x")
    assert reply.status_code == status, reply.text
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"


def test_a_key_sees_what_it_may_use(locked: Any) -> None:
    seen = [card["id"] for card in locked.get("/v1/models", key="acme-1").json()["data"]]
    assert seen == ["tiny", "judge", "poet"]
    seen = [card["name"] for card in locked.get("/v1/adapters", key="any-1").json()["data"]]
    assert seen == []
    assert locked.get("/v1/adapters/pirate", key="acme-1").status_code == 404
    assert [e["path"] for e in locked.get("/lora-adapters", key="acme-1").json()] == ["judge", "poet"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "poet"}),
        ("/v1/unload_lora_adapter", {"lora_name": "x"}),
        ("/v1/adapters/judge/load", {"replace": True}),
        ("/v1/adapters/judge/pin", None),
        ("/v1/adapters/judge/unpin", None),
        ("/v1/adapters/pirate/unload", None),
        ("/lora-adapters", []),
    ],
)
def test_only_the_admin_key_changes_what_there_is(locked: Any, path: str, body: Any) -> None:
    assert locked.post(path, body, key="nobody").status_code == 401
    # The tenant that is called "anyone" is not who asks where there are no keys.
    for key in ("acme-1", "any-1"):
        assert locked.post(path, body, key=key).status_code == 403
    assert locked.post(path, body, key="boss").is_success


def test_probes_need_no_key(locked: Any) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
        assert locked.get(path, key="nobody").status_code == 200


def test_quotas_are_kept_and_told(serve: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "[[tenant]]\nname = 'few'\nkey = 'k'\nrequests_per_minute = 1\n")
    with serve(keys=Keys(path)) as server:
        server.key = "k"
        assert server.write().status_code == 200
        reply = server.write()
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        with server.openai as client, pytest.raises(openai.RateLimitError, match="1 times a minute"):
            client.completions.create(model="tiny", prompt="x")
        assert {line.get("tenant") for line in server.log} == {"few"}
        path.write_text("[[tenant]]\nname = 'few'\nkey = 'k'\n", encoding="utf8")
        server.app.state.site.settings.keys.reread()
        assert server.write().status_code == 200


def test_a_tenant_that_runs_all_it_may_is_refused_until_one_is_done(serve: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "[[tenant]]\nname = 'one'\nkey = 'k'\nmax_running = 1\n")
    long = {**ASKED, "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with serve(keys=Keys(path)) as server:
        server.key = "k"
        with server.http as http, http.stream("POST", "/v1/completions", json=long) as reply:
            assert reply.status_code == 200
            assert server.write().status_code == 429
        for _ in range(100):
            if server.write().status_code == 200:
                break
        else:
            pytest.fail("the request that was given up is still counted")
