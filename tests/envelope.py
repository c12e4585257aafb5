"""The one shape of every error: what each answer with 4xx must look like, whatever was wrong."""

import json
from typing import Any


def checked_error(raw: bytes) -> dict[str, Any]:
    """What is inside the envelope; fails unless it is exactly `{"error": {"message", "type", "param", "code"}}`.

    The Files API says message and code once more, in `detail`.
    """
    body = json.loads(raw)
    error = body["error"]
    assert list(body) == ["error"] or (list(body) == ["error", "detail"] and body["detail"] == {k: error[k] for k in ("message", "code")})
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"].strip()
    assert len(error["message"]) < 2000, "a message does not repeat what was sent"
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None or (isinstance(error["param"], str) and error["param"])
    assert error["code"] is None or (isinstance(error["code"], str) and error["code"])
    return error
