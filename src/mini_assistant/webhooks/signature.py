"""How a call of a webhook is signed, after the Standard Webhooks specification 1.0.

The receiver verifies with the package of OpenAI (`client.webhooks.unwrap`), or with any library for Standard Webhooks.
"""

import base64
import hashlib
import hmac

_SECRET_PREFIX = "whsec_"


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a call. secret: with its prefix. message_id: the same for each repeat. timestamp: unix seconds of this call."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
