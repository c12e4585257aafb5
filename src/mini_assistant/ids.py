"""Identifiers in the shapes the hosted API used.

Source: recorded traffic; `asst_`, `thread_`, `msg_`, `run_`, `step_` and `call_` carry 24 letters or digits, `file-` 22;
request ids and those of uploads and vector stores 32 lower-case hex digits.
"""

import os
import random
import threading

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# 248 is the largest multiple of 62 in a byte: bytes above it would favour some letters, so they are skipped.
_LETTER_OF_BYTE = [_ALPHABET[value % 62] if value < 248 else "" for value in range(256)]
_STOCK_BYTES = 4096


class _Entropy:
    """Random bytes of the operating system, fetched in stock: asking it for each id costs more than the rest of a small request."""

    def __init__(self) -> None:
        self._stock = b""
        self._place = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bytes:
        """`count` bytes that nobody else gets; at most `_STOCK_BYTES`."""
        with self._lock:
            if self._place + count > len(self._stock):
                self._stock, self._place = os.urandom(_STOCK_BYTES), 0
            self._place += count
            return self._stock[self._place - count : self._place]


_entropy = _Entropy()


def new_id(prefix: str) -> str:
    """A fresh id such as `run_` + 24 letters or digits, unguessable. `prefix` comes without the underscore."""
    return f"{prefix}_{_letters()[:24]}"


def new_file_id() -> str:
    """A fresh `file-` id with 22 letters or digits, unguessable; its hyphen is no slip."""
    return f"file-{_letters()[:22]}"


def _letters() -> str:
    body = "".join([_LETTER_OF_BYTE[value] for value in _entropy.take(28)])
    while len(body) < 24:
        body += "".join([_LETTER_OF_BYTE[value] for value in _entropy.take(8)])
    return body


def new_hex_id(prefix: str) -> str:
    """A fresh id such as `vs_` + 32 lower-case hex digits, unguessable. `prefix` comes without the underscore."""
    return f"{prefix}_{_entropy.take(16).hex()}"


def new_blob_key() -> str:
    """A fresh name for bytes in the blob store: 32 lower-case hex digits. Clients never see it."""
    return _entropy.take(16).hex()


def new_request_id() -> str:
    """A fresh `req_` id, sent back as `x-request-id`. It names a request in the logs and guards nothing, so it may be guessed."""
    return "req_" + random.randbytes(16).hex()  # noqa: S311
