"""Who is asking: the key of a request, and the project that it stands for. Source: behaviour §1.2, §1.4."""

import hashlib

from mini_assistant.errors import Forbidden, InvalidRequest, NotAuthenticated
from mini_assistant.settings import Settings

DEFAULT_PROJECT_ID = "default"


class Authenticator:
    """Checks keys against the settings. Without any key in the settings everybody is the project `default`."""

    def __init__(self, settings: Settings) -> None:
        # Only hashes are compared, so the time of a comparison says nothing about a key.
        self._hashes = {hashlib.sha256(key.encode()).digest() for key in settings.api_keys}
        self._is_strict = settings.strict_beta_header

    def project_of(self, headers: dict[bytes, bytes], path: str) -> str:
        """The project that a request belongs to.

        Raises NotAuthenticated for a missing or unknown key, Forbidden for a foreign web page's request to a server without keys, and
        InvalidRequest when the beta header is demanded and missing, or names the first version of the API.
        """
        if self._hashes:
            self._check_key(headers.get(b"authorization"))
        elif headers.get(b"sec-fetch-site") == b"cross-site":
            # Any page that the user has open could otherwise work on a server that asks nobody for a key.
            raise Forbidden("This server has no API keys and refuses requests that other web sites make.", code="cross_site_request")
        beta = headers.get(b"openai-beta", b"")
        is_old = b"assistants=v1" in beta
        if (is_old or (self._is_strict and b"assistants=v2" not in beta)) and _is_assistants_path(path):
            raise InvalidRequest(
                "You must provide the 'OpenAI-Beta' header to access the Assistants API. "
                "Please try again by setting the header 'OpenAI-Beta: assistants=v2'.",
                code="invalid_beta",
            )
        return DEFAULT_PROJECT_ID

    def _check_key(self, authorization: bytes | None) -> None:
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise NotAuthenticated(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
                "(i.e. Authorization: Bearer YOUR_KEY)."
            )
        if hashlib.sha256(key.strip()).digest() not in self._hashes:
            raise NotAuthenticated(
                f"Incorrect API key provided: {_masked(key.strip())}. You can find your API key in the settings of this server.",
                code="invalid_api_key",
            )


def _is_assistants_path(path: str) -> bool:
    return path.startswith(("/assistants", "/threads"))


def _masked(key: bytes) -> str:
    text = key.decode("ascii", "replace")
    return f"{text[:3]}***{text[-4:]}" if len(text) >= 16 else "***"
