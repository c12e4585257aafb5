"""Identifiers in the shapes the hosted API used.

Source: recorded traffic; `asst_`, `thread_`, `msg_`, `run_`, `step_` and `call_` carry 24 letters or digits,
request ids 32 lower-case hex digits.
"""

import os
import secrets

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# 248 is the largest multiple of 62 in a byte: bytes above it would favour some letters, so they are skipped.
_LETTER_OF_BYTE = [_ALPHABET[value % 62] if value < 248 else "" for value in range(256)]


def new_id(prefix: str) -> str:
    """A fresh id such as `run_` + 24 letters or digits, unguessable. `prefix` comes without the underscore."""
    body = "".join([_LETTER_OF_BYTE[value] for value in os.urandom(32)])
    while len(body) < 24:
        body += "".join([_LETTER_OF_BYTE[value] for value in os.urandom(8)])
    return f"{prefix}_{body[:24]}"


def new_request_id() -> str:
    """A fresh `req_` id, sent back as `x-request-id`."""
    return "req_" + secrets.token_hex(16)
