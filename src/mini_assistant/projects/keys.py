"""Keys of clients: how they are made, how they are known again, and what a process believes of them for a while.

A key is `sk-mini-`, twelve letters that find its row, and 43 letters that nobody can guess: 256 random bits. So a plain SHA-256 is
enough to keep it: nobody finds the bits by trying, as they would find a password.
"""

import asyncio
import datetime
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from mini_assistant.db.base import Bound, Database, GuardFailed
from mini_assistant.errors import ConfigError
from mini_assistant.ids import new_id
from mini_assistant.projects import store
from mini_assistant.projects.audit import audit_entry
from mini_assistant.projects.store import KeyRecord
from mini_assistant.services import Services

SCOPES = ("read", "write", "admin")
DEFAULT_SCOPES = ("read", "write")
COMMAND = "command"
"""The actor of the audit log that stands for the command line."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_PREFIX_LETTERS = 12
_SECRET_LETTERS = 43
_KEY = re.compile(rb"sk-mini-([A-Za-z0-9]{%d})-[A-Za-z0-9]{%d}" % (_PREFIX_LETTERS, _SECRET_LETTERS))
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DAY_SECONDS = 86_400
_EXPIRY_DAYS_MAX = 36_500
# Of each kind, keys and refusals; 2 MB when full. Only what is no older than `key_cache_seconds` counts.
_REMEMBERED_MAX = 10_000
# Reads for keys at a time: a flood of made-up keys takes no more of the database than this.
_READS_MAX = 4


class Caller(NamedTuple):
    """Who asks. actor: as in `audit_log.actor`."""

    project_id: str
    actor: str
    scopes: frozenset[str]


class KnownKey(NamedTuple):
    """A key that was presented whole. expires_at: unix seconds, infinite for never."""

    caller: Caller
    expires_at: float
    is_revoked: bool


class NewKey(NamedTuple):
    """A key that was just made; `key` is nowhere else."""

    key: str
    record: KeyRecord


def checked_project(name: str) -> str:
    """The name of a project, which is its id too. Raises ConfigError for one that is none."""
    if not _PROJECT.fullmatch(name):
        raise ConfigError("The name of a project has at most 63 small letters, digits, '-' and '_', and begins with a letter or a digit.")
    return name


def checked_scopes(named: str) -> tuple[str, ...]:
    """The scopes in a list such as `read,write`. Raises ConfigError for an empty list and for others than there are."""
    wanted = {word.strip() for word in named.split(",")}
    if not wanted <= set(SCOPES):
        raise ConfigError(f"The scopes of a key are some of {','.join(SCOPES)}, with commas between them, but were given as '{named}'.")
    return tuple(scope for scope in SCOPES if scope in wanted)


def new_key(project_id: str, scopes: Collection[str], now: int, expires_days: int | None = None) -> NewKey:
    """A fresh key, not yet written. expires_days: None for one that does not expire. Raises ConfigError for a number of no sense."""
    if expires_days is not None and not 0 < expires_days <= _EXPIRY_DAYS_MAX:
        raise ConfigError(f"A key expires after 1 to {_EXPIRY_DAYS_MAX} days, but {expires_days} were given.")
    prefix = _random_letters(_PREFIX_LETTERS)
    key = f"sk-mini-{prefix}-{_random_letters(_SECRET_LETTERS)}"
    record = KeyRecord(
        id=new_id("key"),
        project_id=project_id,
        prefix=prefix,
        hash=hashlib.sha256(key.encode()).hexdigest(),
        scopes=" ".join(scopes),
        created_at=now,
        expires_at=None if expires_days is None else now + expires_days * _DAY_SECONDS,
        revoked_at=None,
    )
    return NewKey(key, record)


def insert_key(record: KeyRecord) -> list[Bound]:
    """Writes a new key, and the line of the audit log about it."""
    return [store.insert_key(record), _audited(record, "api_key.created", record.created_at)]


async def revoke_key(db: Database, key_id: str, now: int) -> KeyRecord:
    """Revoke a key; nothing changes when it is revoked already. Raises ConfigError when there is none with this id."""
    record = await store.get_key_or_none(db, key_id)
    if record is None:
        raise ConfigError("There is no key with this id; `mini-assistant keys list` shows the ids.")
    try:
        await db.write([store.revoke_key(key_id, now), _audited(record, "api_key.revoked", now)])
    except GuardFailed:
        return record
    return record._replace(revoked_at=now)


def _audited(record: KeyRecord, action: str, now: int) -> Bound:
    return audit_entry(record.project_id, now, action, record.id, actor=COMMAND)


def _random_letters(count: int) -> str:
    return "".join([secrets.choice(_ALPHABET) for _ in range(count)])


def key_table(records: Sequence[KeyRecord], now: int) -> Iterator[str]:
    """Keys as lines for a terminal, under a line of headings; without their hashes. now: unix seconds."""
    cells = [("ID", "PROJECT", "PREFIX", "SCOPES", "CREATED", "EXPIRES", "STATE")]
    for record in records:
        scopes = record.scopes.replace(" ", ",")
        expires = "never" if record.expires_at is None else _date(record.expires_at)
        cells.append((record.id, record.project_id, record.prefix, scopes, _date(record.created_at), expires, _state(record, now)))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        yield "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]).rstrip()


def _state(record: KeyRecord, now: int) -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "expired" if record.expires_at is not None and record.expires_at <= now else "valid"


def _date(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class KeyCache:
    """What this process has read of keys, believed for `key_cache_seconds`, and then read again.

    Keys are remembered by their hash, so that none lies in memory for long.
    """

    def __init__(self, services: Services) -> None:
        self._db = services.db
        self._clock = services.clock
        self._seconds = services.settings.key_cache_seconds
        self._reads = asyncio.Semaphore(_READS_MAX)
        self._known: dict[bytes, tuple[KnownKey, float]] = {}
        self._refused: dict[bytes, tuple[None, float]] = {}
        self._is_any = False
        self._asked_at = -math.inf

    async def find_or_none(self, key: bytes, digest: bytes) -> KnownKey | None:
        """What a key is; None when nobody has made it. digest: its SHA-256. Raises StoreUnavailable when that cannot be read now."""
        entry = self._known.get(digest) or self._refused.get(digest)
        if entry is not None and self._is_fresh(entry[1]):
            return entry[0]
        shape = _KEY.fullmatch(key)
        return None if shape is None else await self._read(shape[1].decode(), digest)

    async def is_any(self) -> bool:
        """Whether a key was ever made. Raises StoreUnavailable when that cannot be read now."""
        if not self._is_any and not self._is_fresh(self._asked_at):
            async with self._reads:
                if not self._is_any and not self._is_fresh(self._asked_at):
                    asked_at = self._clock.now()
                    self._is_any = await store.is_any_key(self._db)
                    self._asked_at = asked_at
        return self._is_any

    async def _read(self, prefix: str, digest: bytes) -> KnownKey | None:
        async with self._reads:
            entry = self._known.get(digest) or self._refused.get(digest)
            if entry is not None and self._is_fresh(entry[1]):  # another request has read it meanwhile
                return entry[0]
            read_at = self._clock.now()
            record = await store.find_key_or_none(self._db, prefix)
        if record is None or not hmac.compare_digest(bytes.fromhex(record.hash), digest):
            _remember(self._refused, digest, (None, read_at))
            self._known.pop(digest, None)
            return None
        self._is_any = True
        caller = Caller(record.project_id, record.id, frozenset(record.scopes.split()))
        known = KnownKey(caller, math.inf if record.expires_at is None else record.expires_at, record.revoked_at is not None)
        _remember(self._known, digest, (known, read_at))
        return known

    def is_expired(self, known: KnownKey) -> bool:
        """Whether the time of a key is over, whenever it was read."""
        return known.expires_at <= self._clock.now()

    def _is_fresh(self, read_at: float) -> bool:
        # A clock that was put back must not make anything last longer.
        return 0 <= self._clock.now() - read_at < self._seconds


def _remember(entries: dict[bytes, Any], digest: bytes, entry: tuple[KnownKey | None, float]) -> None:
    if len(entries) >= _REMEMBERED_MAX:
        entries.clear()
    entries[digest] = entry
