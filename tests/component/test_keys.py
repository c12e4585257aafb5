"""Keys that the command makes: what they open, what they do not, how soon a server notices, and what looking them up costs.

Times are moved by hand, but for the tests through HTTP, whose servers believe nothing for any time.
"""

import asyncio
import dataclasses
import datetime
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import openai
import pytest

from mini_assistant import administration
from mini_assistant.app import DATABASE_FILE, all_routes, open_services, running_server
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Bound, Row
from mini_assistant.errors import ConfigError, NotAuthenticated, StoreUnavailable
from mini_assistant.http.auth import NOBODY, Authenticator, Caller
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects import keys, store
from mini_assistant.projects.keys import NewKey
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from tests.envelope import checked_error

PRIVATE = [route for route in all_routes() if not route.public]
NOW = 1_700_000_000
DAY_SECONDS = 86_400
CACHE_SECONDS = 5.0

# For what does not come to the database in another way than its neighbours.
on_sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    if database_url:
        apply_schema(database_url)
    return Settings(
        port=0,
        data_dir=tmp_path / "data",
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        sandbox="none",
        key_cache_seconds=0,
    )


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def bearer(made: NewKey | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {made if isinstance(made, str) else made.key}"}


async def make(settings: Settings, project: str, scopes: str = "read,write", expires_days: int | None = None) -> NewKey:
    return await administration.create_key(settings, project, scopes, expires_days)


async def status_and_code(http: aiohttp.ClientSession, method: str, path: str, headers: dict[str, str]) -> tuple[int, str | None]:
    async with http.request(method, path, headers=headers, json={} if method == "POST" else None) as response:
        raw = await response.read()
        return response.status, checked_error(raw)["code"] if response.status >= 400 else None


# ---- through HTTP ------------------------------------------------------------------------------------------------------------------


async def test_a_key_counts_at_once_and_closes_the_server(settings: Settings, http: aiohttp.ClientSession) -> None:
    assert await status_and_code(http, "GET", "/v1/threads", {}) == (200, None)
    assert await status_and_code(http, "GET", "/v1/threads", bearer("anything")) == (200, None)

    made = await make(settings, "team-a")

    assert await status_and_code(http, "GET", "/v1/threads", bearer(made)) == (200, None)
    assert await status_and_code(http, "GET", "/v1/threads", {}) == (401, None)
    for key in ("anything", made.key[:-1], made.key + "x", made.key.lower(), made.key[:-1] + "!", made.record.prefix, made.record.hash):
        assert await status_and_code(http, "GET", "/v1/threads", bearer(key)) == (401, "invalid_api_key")


async def test_a_key_opens_its_own_project_only(settings: Settings, http: aiohttp.ClientSession, server: str) -> None:
    ours, theirs = await make(settings, "ours"), await make(settings, "theirs")
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=ours.key, max_retries=0) as client:
        thread = await client.beta.threads.create()
        await client.beta.threads.retrieve(thread.id)
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=theirs.key, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.beta.threads.retrieve(thread.id)
        with pytest.raises(openai.NotFoundError):
            await client.beta.threads.delete(thread.id)
    async with http.get("/v1/threads", headers=bearer(theirs)) as response:
        assert (await response.json())["data"] == []


@on_sqlite
async def test_organization_and_project_headers_change_nothing(settings: Settings, server: str) -> None:
    ours, theirs = await make(settings, "ours"), await make(settings, "theirs")
    options = {"base_url": f"{server}/v1", "max_retries": 0, "organization": "org-x", "project": "theirs"}
    async with openai.AsyncOpenAI(api_key=ours.key, **options) as client:  # type: ignore[arg-type]
        thread = await client.beta.threads.create()
    async with openai.AsyncOpenAI(api_key=theirs.key, **options) as client:  # type: ignore[arg-type]
        with pytest.raises(openai.NotFoundError):
            await client.beta.threads.retrieve(thread.id)


@on_sqlite
@pytest.mark.parametrize("scope", ["read", "write", "admin"])
async def test_a_scope_allows_its_own_routes_only(scope: str, settings: Settings, http: aiohttp.ClientSession) -> None:
    made = await make(settings, "team-a", scope)
    refused = [route for route in PRIVATE if route.needed_scope != scope]
    assert refused
    for route in refused:
        path = "/v1" + re.sub(r"{(\w+)}", r"\1", route.path)
        assert await status_and_code(http, route.method, path, bearer(made)) == (403, "insufficient_permissions"), route.name
    allowed = {"read": ("GET", "/v1/threads"), "write": ("POST", "/v1/threads"), "admin": ("GET", "/v1/organization/audit_logs")}
    for name, (method, path) in allowed.items():
        assert (await status_and_code(http, method, path, bearer(made)))[0] == (200 if name == scope else 403)


@on_sqlite
async def test_what_a_key_lacks_is_said_as_the_hosted_service_did(settings: Settings, server: str) -> None:
    made = await make(settings, "team-a", "read")
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=made.key, max_retries=0) as client:
        with pytest.raises(
            openai.PermissionDeniedError, match=r"You have insufficient permissions for this operation\. Missing scopes: write"
        ):
            await client.beta.threads.create()


def test_routes_need_the_scopes_that_they_should() -> None:
    by_scope = {route.name: route.needed_scope for route in PRIVATE}
    assert {name for name, scope in by_scope.items() if scope == "admin"} >= {"listAuditLogs"}
    assert all(scope == "admin" for route in PRIVATE for scope in [route.needed_scope] if route.path.startswith("/organization/"))
    assert {route.name for route in PRIVATE if route.method == "POST" and route.needed_scope == "read"} == {"searchVectorStore"}
    assert {route.needed_scope for route in PRIVATE if route.method == "DELETE"} == {"write"}


async def test_a_revoked_key_is_refused_and_the_server_stays_closed(settings: Settings, http: aiohttp.ClientSession) -> None:
    made = await make(settings, "team-a")
    assert await status_and_code(http, "GET", "/v1/threads", bearer(made)) == (200, None)

    await administration.revoke_key(settings, made.record.id)

    assert await status_and_code(http, "GET", "/v1/threads", bearer(made)) == (401, "invalid_api_key")
    assert await status_and_code(http, "GET", "/v1/threads", {}) == (401, None)


@on_sqlite
async def test_a_server_is_not_opened_by_its_next_start_when_all_keys_are_revoked(settings: Settings) -> None:
    made = await make(settings, "team-a")
    await administration.revoke_key(settings, made.record.id)
    async with running_server(settings) as server, aiohttp.ClientSession(server) as http:
        assert await status_and_code(http, "GET", "/v1/threads", {}) == (401, None)


@on_sqlite
async def test_keys_of_the_settings_go_on_beside_others(settings: Settings) -> None:
    made = await make(settings, "team-a")
    async with running_server(dataclasses.replace(settings, api_keys=("k" * 20,))) as server, aiohttp.ClientSession(server) as http:
        for key in ("k" * 20, made.key):
            assert await status_and_code(http, "GET", "/v1/threads", bearer(key)) == (200, None)
        assert await status_and_code(http, "GET", "/v1/threads", bearer("j" * 20)) == (401, "invalid_api_key")


# ---- where a server listens --------------------------------------------------------------------------------------------------------


async def test_other_addresses_are_served_with_a_key_only(settings: Settings) -> None:
    everywhere = dataclasses.replace(settings, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"^host is 0\.0\.0\.0, which others can reach, but no key is set\. Make one with `mini-assist"):
        async with running_server(everywhere):
            pass

    made = await make(settings, "team-a")
    async with running_server(everywhere) as server, aiohttp.ClientSession(server.replace("0.0.0.0", "127.0.0.1")) as http:
        assert await status_and_code(http, "GET", "/v1/threads", {}) == (401, None)
        assert await status_and_code(http, "GET", "/v1/threads", {**bearer(made), "Host": "assistants.example"}) == (200, None)


@on_sqlite
async def test_a_setting_serves_everybody(settings: Settings) -> None:
    everybody = dataclasses.replace(settings, host="0.0.0.0", serve_without_keys=True)
    async with running_server(everybody) as server, aiohttp.ClientSession(server.replace("0.0.0.0", "127.0.0.1")) as http:
        assert await status_and_code(http, "GET", "/v1/threads", {"Host": "assistants.example"}) == (200, None)
        assert await status_and_code(http, "GET", "/v1/threads", {"Sec-Fetch-Site": "cross-site"}) == (403, "cross_site_request")


# ---- making and listing ------------------------------------------------------------------------------------------------------------


async def test_a_key_is_nowhere_but_in_the_hands_of_who_made_it(settings: Settings, tmp_path: Path) -> None:
    made = await make(settings, "team-a", "admin,read,read", expires_days=3)
    assert re.fullmatch(r"sk-mini-[A-Za-z0-9]{12}-[A-Za-z0-9]{43}", made.key)
    secret = made.key.rsplit("-", 1)[1]
    record = made.record
    assert record.scopes == "read admin"
    assert record.expires_at == record.created_at + 3 * DAY_SECONDS
    assert secret not in repr(record)
    assert not [file for file in files_of(tmp_path) if secret.encode() in file.read_bytes()]

    heading, line = await administration.list_keys(settings, None)
    created, expires = (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for seconds in (record.created_at, record.created_at + 3 * DAY_SECONDS)
    )
    assert heading.split() == ["ID", "PROJECT", "PREFIX", "SCOPES", "CREATED", "EXPIRES", "STATE"]
    assert line.split() == [record.id, "team-a", record.prefix, "read,admin", created, expires, "valid"]
    assert record.hash not in line


async def test_keys_are_listed_in_their_order_and_by_project(settings: Settings) -> None:
    made = [await make(settings, project) for project in ("b", "a", "b")]
    await administration.revoke_key(settings, made[2].record.id)

    lines = await administration.list_keys(settings, None)
    assert [line.split()[0] for line in lines[1:]] == [key.record.id for key in made]
    assert [line.split()[-1] for line in lines[1:]] == ["valid", "valid", "revoked"]
    assert [line.split()[0] for line in (await administration.list_keys(settings, "b"))[1:]] == [made[0].record.id, made[2].record.id]
    assert len(await administration.list_keys(settings, "c")) == 1


def test_an_expired_key_is_listed_as_such() -> None:
    record = keys.new_key("a", ("read",), NOW, 1).record
    assert [list(keys.key_table([record], now))[1].split()[-1] for now in (NOW + DAY_SECONDS - 1, NOW + DAY_SECONDS)] == [
        "valid",
        "expired",
    ]


async def test_revoking_twice_changes_nothing(settings: Settings) -> None:
    made = await make(settings, "team-a")
    first = await administration.revoke_key(settings, made.record.id)
    assert await administration.revoke_key(settings, made.record.id) == first
    for unknown in ("key_x", "", made.key, made.record.prefix):
        with pytest.raises(ConfigError, match=r"^There is no key with this id") as caught:
            await administration.revoke_key(settings, unknown)
        assert made.key not in str(caught.value)


def test_two_keys_have_nothing_in_common() -> None:
    made = [keys.new_key("a", ("read",), NOW) for _ in range(200)]
    assert len({key.key for key in made}) == len({key.record.prefix for key in made}) == len({key.record.id for key in made}) == 200
    assert len({letter for key in made for letter in key.key.rsplit("-", 1)[1]}) == 62


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a b", "a/b", "a\n", "\u00e4", "a" * 64, "../x"])
def test_what_is_no_project(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^The name of a project has at most 63"):
        keys.checked_project(name)
    assert keys.checked_project("a" * 63) == "a" * 63
    assert keys.checked_project("0-team_a") == "0-team_a"


@pytest.mark.parametrize("named", ["", ",", "read,", "all", "read write", "Read"])
def test_what_is_no_scope(named: str) -> None:
    with pytest.raises(ConfigError, match=r"^The scopes of a key are some of read,write,admin"):
        keys.checked_scopes(named)
    assert keys.checked_scopes("write, read,write") == ("read", "write")


@pytest.mark.parametrize("days", [0, -1, 36_501, 10**20])
def test_what_is_no_number_of_days(days: int) -> None:
    with pytest.raises(ConfigError, match=r"^A key expires after 1 to 36500 days"):
        keys.new_key("a", ("read",), NOW, days)


# ---- what a process believes -------------------------------------------------------------------------------------------------------


class CountedDatabase:
    """The database with its reads counted; they wait while `gate` is closed, and fail while `is_away`."""

    def __init__(self, services: Services) -> None:
        self._db = services.db
        self.reads = 0
        self.reads_at_once = 0
        self.reads_at_once_max = 0
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, statement: Bound) -> list[Row]:
        self.reads += 1
        self.reads_at_once += 1
        self.reads_at_once_max = max(self.reads_at_once_max, self.reads_at_once)
        try:
            await self.gate.wait()
            if self.is_away:
                raise StoreUnavailable("The database is away.")
            return await self._db.read(statement)
        finally:
            self.reads_at_once -= 1

    async def write(self, statements: Sequence[Bound]) -> list[list[Row]]:
        return await self._db.write(statements)


class Door:
    """An authenticator whose time and database are in the hands of the test."""

    def __init__(self, services: Services) -> None:
        self.clock = ManualClock(NOW)
        self.db = CountedDatabase(services)
        settings = dataclasses.replace(services.settings, key_cache_seconds=CACHE_SECONDS)
        self._services = dataclasses.replace(services, db=self.db, clock=self.clock, settings=settings)  # type: ignore[arg-type]
        self.authenticator = Authenticator(self._services)

    async def make(self, project: str = "team-a", expires_days: int | None = None) -> NewKey:
        made = keys.new_key(project, ("read",), NOW, expires_days)
        await self.db.write(keys.insert_key(made.record))
        return made

    async def revoke(self, made: NewKey) -> None:
        await keys.revoke_key(self.db, made.record.id, NOW)  # type: ignore[arg-type]
        self.db.reads = 0

    async def enter(self, key: str = "") -> Caller | str:
        """Who the key stands for, or why it is refused."""
        headers = {b"host": b"localhost"} | ({b"authorization": f"Bearer {key}".encode()} if key else {})
        try:
            return await self.authenticator.caller_of(headers, "/threads")
        except NotAuthenticated as exc:
            return exc.message

    def enter_at_once(self, key: str) -> Caller:
        """As `enter`, without a turn of the event loop."""
        asking = self.authenticator.caller_of({b"authorization": f"Bearer {key}".encode()}, "/threads")
        try:
            asking.send(None)
        except StopIteration as end:
            return end.value
        asking.close()
        raise AssertionError("it waits for something")


@pytest.fixture
async def door(settings: Settings) -> AsyncIterator[Door]:
    async with open_services(settings) as services:
        yield Door(services)


async def test_a_key_is_read_once_in_a_while(door: Door) -> None:
    made = await door.make()
    caller = Caller("team-a", made.record.id, frozenset(["read"]))
    assert await door.enter(made.key) == caller
    assert door.db.reads == 1
    door.clock.advance(CACHE_SECONDS - 0.001)
    for _ in range(100):
        assert door.enter_at_once(made.key) == caller
    assert door.db.reads == 1
    door.clock.advance(0.001)
    assert await door.enter(made.key) == caller
    assert door.db.reads == 2


async def test_a_revoked_key_goes_on_until_it_is_read_again(door: Door) -> None:
    made = await door.make()
    await door.enter(made.key)
    await door.revoke(made)

    door.clock.advance(CACHE_SECONDS - 0.001)
    assert door.enter_at_once(made.key).project_id == "team-a"
    door.clock.advance(0.001)
    for _ in range(3):
        assert str(await door.enter(made.key)).startswith("Incorrect API key provided: sk-***")
    assert door.db.reads == 1


@on_sqlite
async def test_a_clock_that_is_put_back_keeps_no_key_alive(door: Door) -> None:
    made = await door.make()
    await door.enter(made.key)
    await door.revoke(made)
    door.clock.advance(-3600)
    assert isinstance(await door.enter(made.key), str)


@on_sqlite
async def test_a_key_expires_to_the_second(door: Door) -> None:
    made = await door.make(expires_days=1)
    door.clock.advance(DAY_SECONDS - 1)
    assert isinstance(await door.enter(made.key), Caller)
    door.clock.advance(0.999)
    assert isinstance(door.enter_at_once(made.key), Caller)
    door.clock.advance(0.001)
    told = await door.enter(made.key)
    assert str(told).startswith("The API key provided has expired: sk-***")
    assert made.key not in str(told)
    assert door.db.reads == 1


async def test_the_first_key_counts_from_its_first_use_and_for_others_soon(door: Door) -> None:
    assert await door.enter() == await door.enter("anything") == NOBODY
    assert door.db.reads == 1, "whether there is any key was asked once"
    made = await door.make()
    assert await door.enter() == NOBODY, "nobody has noticed"
    assert await door.enter(made.key) == Caller("team-a", made.record.id, frozenset(["read"]))
    assert str(await door.enter()).startswith("You didn't provide an API key.")

    other = Door(door._services)  # another process  # pyright: ignore[reportPrivateUsage]
    assert str(await other.enter()).startswith("You didn't provide an API key.")


@on_sqlite
async def test_a_process_without_keys_asks_again(door: Door) -> None:
    assert await door.enter() == NOBODY
    await door.make()
    door.clock.advance(CACHE_SECONDS - 0.001)
    assert await door.enter() == NOBODY
    door.clock.advance(0.001)
    assert isinstance(await door.enter(), str)
    door.clock.advance(10 * CACHE_SECONDS)
    reads = door.db.reads
    assert isinstance(await door.enter(), str)
    assert door.db.reads == reads, "once there is a key there always was one"


@on_sqlite
async def test_a_wrong_secret_behind_a_right_prefix(door: Door) -> None:
    made = await door.make()
    forged = made.key[:-1] + ("a" if made.key[-1] != "a" else "b")
    for key in (forged, made.key, forged):
        assert isinstance(await door.enter(key), Caller if key == made.key else str)


@on_sqlite
async def test_a_wrong_key_is_read_once_in_a_while(door: Door) -> None:
    await door.make()
    wrong = keys.new_key("team-a", ("read",), NOW).key
    for _ in range(50):
        assert isinstance(await door.enter(wrong), str)
    assert door.db.reads == 2, "the key, and whether there is any"


@on_sqlite
async def test_what_has_not_the_shape_of_a_key_is_not_looked_up(door: Door) -> None:
    made = await door.make()
    await door.enter(made.key)
    reads = door.db.reads
    for key in ("x", "sk-test", made.key[:-1], made.key + "a", made.key + "\n.", made.key.replace("sk-mini", "sk-maxi"), "k" * 100_000):
        assert isinstance(await door.enter(key), str)
    assert door.db.reads == reads


@on_sqlite
async def test_made_up_keys_take_little_memory_and_little_of_the_database(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_REMEMBERED_MAX", 20)
    made = await door.make()
    await door.enter(made.key)
    reads = door.db.reads

    door.db.gate.clear()
    flood = [asyncio.create_task(door.enter(keys.new_key("x", ("read",), NOW).key)) for _ in range(200)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert door.db.reads - reads == door.db.reads_at_once_max == 4
    assert isinstance(door.enter_at_once(made.key), Caller), "whose key is known waits for nobody"
    door.db.gate.set()
    assert all(isinstance(told, str) for told in await asyncio.gather(*flood))
    assert door.db.reads_at_once_max == 4
    cache = door.authenticator._keys  # pyright: ignore[reportPrivateUsage]
    assert len(cache._refused) <= 20  # pyright: ignore[reportPrivateUsage]
    assert len(cache._known) == 1  # pyright: ignore[reportPrivateUsage]


@on_sqlite
async def test_many_requests_with_a_new_key_read_it_together(door: Door) -> None:
    made = await door.make()
    told = await asyncio.gather(*(door.enter(made.key) for _ in range(100)))
    assert {caller.project_id for caller in told if isinstance(caller, Caller)} == {"team-a"}
    assert len(told) == 100
    assert door.db.reads <= 4


@on_sqlite
async def test_a_database_that_is_away_opens_nothing(door: Door) -> None:
    made = await door.make()
    door.db.is_away = True
    for key in ("", "anything", made.key):
        with pytest.raises(StoreUnavailable):
            await door.enter(key)
    door.db.is_away = False
    assert isinstance(await door.enter(made.key), Caller)
    door.db.is_away = True
    assert isinstance(door.enter_at_once(made.key), Caller)
    door.clock.advance(CACHE_SECONDS)
    with pytest.raises(StoreUnavailable):
        await door.enter(made.key)


async def test_a_key_whose_row_is_gone_is_refused(settings: Settings, door: Door) -> None:
    made = await door.make()
    await door.enter(made.key)
    gone = store.api_keys.delete()
    await door.db.write([keys.store.Query(gone)()])
    door.clock.advance(CACHE_SECONDS)
    assert isinstance(await door.enter(made.key), str)


@on_sqlite
async def test_a_worker_that_others_reach_shows_them_nothing_without_keys(settings: Settings) -> None:
    """It starts without a key, for its probes are public; whatever else it may answer is not for everybody."""
    async with open_services(settings) as services:
        for changes, is_open in (({}, False), ({"serve_without_keys": True}, True)):
            reached = dataclasses.replace(settings, host="0.0.0.0", **changes)
            authenticator = Authenticator(dataclasses.replace(services, settings=reached))
            if is_open:
                assert await authenticator.caller_of({}, "/metrics") == NOBODY
            else:
                with pytest.raises(NotAuthenticated):
                    await authenticator.caller_of({b"host": b"localhost"}, "/metrics")


@on_sqlite
async def test_a_database_is_made_for_the_first_key_and_only_for_it(settings: Settings) -> None:
    for command in (administration.list_keys(settings, None), administration.revoke_key(settings, "key_x")):
        with pytest.raises(StoreUnavailable, match="is not there"):
            await command
    assert not (settings.data_dir / DATABASE_FILE).exists()
    await make(settings, "team-a")
    assert len(await administration.list_keys(settings, None)) == 2
