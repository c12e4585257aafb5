"""Bytes of files in a bucket of an S3 server: one object a blob, `<prefix>/<key>`.

A large blob is sent in parts, and is no object before the last step, so an object always stands for all bytes. What is not finished is
aborted; parts that a killed process has left behind are in no list of objects, and a lifecycle rule of the bucket drops them.
"""

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from mini_assistant.errors import BlobMissing, ConfigError, StoreUnavailable
from mini_assistant.files.blobs.base import WrittenBlob
from mini_assistant.files.blobs.batches import BlobHashes, batches_of, joined
from mini_assistant.ids import new_blob_key

if TYPE_CHECKING:
    from obstore import AsyncWritableFile, BytesStream
    from obstore.store import ClientConfig, RetryConfig, S3Config

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_READ_BYTES = 256 * 1024
# The least that S3 takes as a part. A blob has at most 10,000 of them, which is 52 GB.
_PART_BYTES = 5 * 1024 * 1024
_PARTS_IN_FLIGHT_MAX = 2
# A read goes on after this many broken connections in a row; each one that brings bytes starts the count anew.
_BREAKS_MAX = 4
_CONNECT_SECONDS = 5
_REQUEST_SECONDS = 60
_RETRIES_MAX = 5
_RETRY_SECONDS = 30
# A reader's client may take hours, so a whole read is not bounded; the wait for its next bytes is.
_READ_SECONDS = 24 * 3600

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
# S3's own words for what an operator can change. Its other words may hold a key or a signature, so they are never passed on.
_CODES = {
    "AccessDenied": "the key may not do this",
    "InvalidAccessKeyId": "the key is not known there",
    "NoSuchBucket": "the bucket does not exist",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "SignatureDoesNotMatch": "the secret does not belong to the key",
    "SlowDown": "it is overloaded",
}
# How the client names its own failures, the most telling first.
_FAILURES = {
    "/latest/api/token": "no key is set, and this machine has no role",
    "security-credentials": "no key is set, and this machine has no role",
    "kind: Timeout": "it did not answer in time",
    "TimedOut": "it did not answer in time",
    "dns error": "the name of its host is not known",
    "error sending request": "it cannot be reached",
    "HTTP error": "the connection broke",
}


class S3BlobStore:
    """Blobs as objects of a bucket, which has to be there."""

    def __init__(self, url: str, *, endpoint_url: str, region: str, access_key_id: str, secret_access_key: str) -> None:
        """url: s3://bucket/prefix. An empty endpoint, region or key is taken from the environment or from the machine's role.

        Raises ConfigError when a setting cannot be right.
        """
        bucket, prefix = _parsed_url(url)
        config = _config(endpoint_url, region, access_key_id, secret_access_key)
        is_plain_http = endpoint_url.startswith("http://")
        try:
            self._store = S3Store(
                bucket, prefix=prefix, config=config, client_options=_client(_REQUEST_SECONDS, is_plain_http), retry_config=_RETRIES
            )
            self._store_for_reads = S3Store(
                bucket, prefix=prefix, config=config, client_options=_client(_READ_SECONDS, is_plain_http), retry_config=_RETRIES
            )
        except (BaseError, ValueError):
            raise ConfigError(
                "The settings of S3 (s3_endpoint_url, s3_region) or their AWS_ variables cannot be used."
                " Example: MINI_ASSISTANT_S3_ENDPOINT_URL=http://127.0.0.1:9000"
            ) from None
        self._where = url.rstrip("/") + (f" at {endpoint_url}" if endpoint_url else "")
        self._drops: set[asyncio.Task[None]] = set()

    async def write(self, key: str, pieces: AsyncIterable[bytes], *, bytes_max: int) -> WrittenBlob:
        assert key.isalnum(), key
        writing = _Writing(obstore.open_writer_async(self._store, key, buffer_size=_PART_BYTES, max_concurrency=_PARTS_IN_FLIGHT_MAX))
        try:
            async with contextlib.aclosing(batches_of(pieces, bytes_max)) as batches:
                async for batch in batches:
                    await self._done(writing.add(batch), "written")
            return await self._done(writing.finish(), "written")
        finally:
            if not writing.is_finished:
                await self._dropped(key, writing)

    async def _dropped(self, key: str, writing: "_Writing") -> None:
        """Leave nothing of an unfinished blob; goes on when its writer is cancelled once more."""
        drop = asyncio.create_task(self._drop(key, writing))
        self._drops.add(drop)
        drop.add_done_callback(self._drops.discard)
        await asyncio.shield(drop)

    async def _drop(self, key: str, writing: "_Writing") -> None:
        try:
            if await writing.abort():
                await self.delete(key)
        except StoreUnavailable as exc:
            _log.warning("An unfinished blob was not dropped. %s", exc.message)
        except (BaseError, OSError) as exc:
            _log.warning("Parts of an unfinished blob stay in %s until its lifecycle rule drops them: %s.", self._where, _reason(exc))

    async def join(self, key: str, parts: Sequence[str]) -> WrittenBlob:
        return await self.write(key, joined(self.read, parts), bytes_max=sys.maxsize)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        reached = start
        breaks_left = _BREAKS_MAX
        stream: BytesStream | None = None
        while end is None or reached < end:
            if stream is None and (stream := await self._opened(key, reached, end)) is None:
                return
            try:
                piece = bytes(await anext(stream))
            except StopAsyncIteration:
                return
            except (BaseError, OSError) as exc:
                if breaks_left == 0:
                    raise StoreUnavailable(f"{self._where} cannot be read: {_reason(exc)}.") from None
                breaks_left -= 1
                stream = None
                continue
            reached += len(piece)
            breaks_left = _BREAKS_MAX
            yield piece

    async def _opened(self, key: str, start: int, end: int | None) -> "BytesStream | None":
        """A stream of the bytes from `start` on; None when the blob ends before it."""
        try:
            if end is not None:
                result = await obstore.get_async(self._store_for_reads, key, options={"range": (start, end)})
            elif start > 0:
                result = await obstore.get_async(self._store_for_reads, key, options={"range": {"offset": start}})
            else:
                result = await obstore.get_async(self._store_for_reads, key)
        except (BaseError, OSError) as exc:
            if _is_past_the_end(exc):
                return None
            if isinstance(exc, FileNotFoundError) and _code(exc) != "NoSuchBucket":
                raise BlobMissing(f"The bytes of {key} are not in {self._where} any more.") from None
            raise StoreUnavailable(f"{self._where} cannot be read: {_reason(exc)}.") from None
        return result.stream(_READ_BYTES)

    async def delete(self, key: str) -> None:
        try:
            await obstore.delete_async(self._store, key)
        except (BaseError, OSError) as exc:
            if not isinstance(exc, FileNotFoundError) or _code(exc) == "NoSuchBucket":
                raise StoreUnavailable(f"An object in {self._where} cannot be deleted: {_reason(exc)}.") from None

    async def check(self) -> str:
        key = f"check-{new_blob_key()}"
        await self._done(obstore.put_async(self._store, key, b"1"), "written")
        try:
            await self._done(obstore.get_async(self._store, key), "read")
        finally:
            await self.delete(key)
        return self._where

    async def close(self) -> None:
        """Wait until unfinished blobs are dropped. Connections are given back with the store itself."""
        if self._drops:
            await asyncio.wait(self._drops)

    async def _done(self, work: Awaitable[_T], verb: str) -> _T:
        """What `work` gives; nothing but calls of the client may be in it, since their errors are translated here."""
        try:
            return await work
        except (BaseError, OSError) as exc:
            raise StoreUnavailable(f"{self._where} cannot be {verb}: {_reason(exc)}.") from None


class _Abort(Exception):
    """Leaves the client's writer in the way that makes it abort."""


class _Writing:
    """A blob while it arrives: batches are hashed in a thread while the client takes them."""

    def __init__(self, writer: "AsyncWritableFile") -> None:
        self._writer = writer
        self._hashes = BlobHashes()
        self._closing: asyncio.Future[None] | None = None
        self.is_finished = False

    async def add(self, batch: bytearray) -> None:
        await asyncio.gather(asyncio.to_thread(self._hashes.add, batch), self._writer.write(batch))

    async def finish(self) -> WrittenBlob:
        """Send the last part, and make an object of all."""
        # The client cannot abort from here on, so this step is waited for even when the writer is cancelled.
        self._closing = asyncio.ensure_future(self._writer.close())
        await asyncio.shield(self._closing)
        self.is_finished = True
        return self._hashes.written()

    async def abort(self) -> bool:
        """Drop the parts that were sent; returns whether there is an object, since it was too late for that."""
        if self._closing is None:
            with contextlib.suppress(_Abort):
                async with self._writer:
                    raise _Abort
            return False
        await asyncio.wait([self._closing])
        return self._closing.exception() is None


def _parsed_url(url: str) -> tuple[str, str | None]:
    """The bucket and the prefix, which is None when objects lie at the top."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.rstrip("/").partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)):
        raise ConfigError("The setting blobs_url has to name a bucket of S3, and a prefix if there is one. Example: s3://my-bucket/files")
    return bucket, prefix or None


def _config(endpoint_url: str, region: str, access_key_id: str, secret_access_key: str) -> "S3Config":
    """What is empty is left out, so that the client looks for it itself."""
    if bool(access_key_id) != bool(secret_access_key):
        raise ConfigError(
            "The settings s3_access_key_id and s3_secret_access_key belong together: set both, or none to use the environment."
        )
    # Objects are deleted one by one, and not every server knows how to delete many at a time.
    config: S3Config = {"disable_bulk_delete": True}
    if endpoint_url:
        parts = urlsplit(endpoint_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ConfigError("The setting s3_endpoint_url has to be an address without a key in it. Example: http://127.0.0.1:9000")
        config["endpoint"] = endpoint_url.rstrip("/")
    if region:
        config["region"] = region
    if access_key_id:
        config["access_key_id"] = access_key_id
        config["secret_access_key"] = secret_access_key
    return config


_RETRIES: "RetryConfig" = {
    "max_retries": _RETRIES_MAX,
    "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
}


def _client(request_seconds: int, is_plain_http: bool) -> "ClientConfig":
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_REQUEST_SECONDS),
        "timeout": timedelta(seconds=request_seconds),
    }
    if is_plain_http:  # else as the environment says
        client["allow_http"] = True
    return client


def _code(exc: BaseException) -> str | None:
    """S3's own name of an error; None when the answer has none."""
    found = _CODE.search(str(exc))
    return found[1] if found else None


def _is_past_the_end(exc: BaseException) -> bool:
    status = _STATUS.search(str(exc))
    return status is not None and status[1] == "416"


def _reason(exc: BaseException) -> str:
    """An error of the client in a few words: its own text holds addresses and whole answers, which may name a key."""
    text = str(exc)
    if code := _code(exc):
        return _CODES.get(code, f"S3 answered {code}")
    if status := _STATUS.search(text):
        return f"S3 answered {status[1]}"
    return next((reason for sign, reason in _FAILURES.items() if sign in text), f"the S3 client gave up ({type(exc).__name__})")
