"""Who is asking: the key of a request, and the project that it stands for. Source: behaviour §1.2, §1.4."""

import hashlib
import ipaddress

from mini_assistant.errors import Forbidden, InvalidRequest, NotAuthenticated
from mini_assistant.http.cors import Cors
from mini_assistant.projects.keys import SCOPES, Caller, KeyCache
from mini_assistant.services import Services

DEFAULT_PROJECT_ID = "default"

NOBODY = Caller(DEFAULT_PROJECT_ID, "nobody", frozenset(SCOPES))
_OF_SETTINGS = Caller(DEFAULT_PROJECT_ID, "settings", frozenset(SCOPES))
# Names that no web site of others can have: reserved for this machine, and for private networks such as those of containers.
_NEAR_NAMES = (b".localhost", b".internal")


class Authenticator:
    """Checks keys: those of the settings, and those that `mini-assistant keys` has made.

    As long as there was never a key of either kind, everybody who can reach a loopback address is the project `default`. The headers
    `OpenAI-Organization` and `OpenAI-Project`, which clients of the hosted service send, are accepted and change nothing: the key says
    which project it is.
    """

    def __init__(self, services: Services) -> None:
        settings = services.settings
        # Only hashes are compared, so the time of a comparison says nothing about a key.
        self._hashes = {hashlib.sha256(key.encode()).digest() for key in settings.api_keys}
        self._keys = KeyCache(services)
        self._cors = Cors(settings)
        self._is_strict = settings.strict_beta_header
        self._is_loopback = settings.is_loopback
        self._serves_all = settings.serve_without_keys

    async def caller_of(self, headers: dict[bytes, bytes], path: str) -> Caller:
        """Who makes a request.

        Raises NotAuthenticated for a missing, unknown, revoked or expired key, Forbidden for a foreign web page's request to a server
        without keys, InvalidRequest when the beta header is demanded and missing, or names the first version of the API, and
        StoreUnavailable when the keys cannot be read.
        """
        caller = await self._known_caller(_bearer_key(headers.get(b"authorization")))
        if caller is None:
            self._check_open(headers)
            caller = NOBODY
        beta = headers.get(b"openai-beta", b"")
        is_old = b"assistants=v1" in beta
        if (is_old or (self._is_strict and b"assistants=v2" not in beta)) and _is_assistants_path(path):
            raise InvalidRequest(
                "You must provide the 'OpenAI-Beta' header to access the Assistants API. "
                "Please try again by setting the header 'OpenAI-Beta: assistants=v2'.",
                code="invalid_beta",
            )
        return caller

    async def _known_caller(self, key: bytes) -> Caller | None:
        """Whose key it is; None when it is nobody's and the server has no keys. key: empty when there is none. Raises NotAuthenticated."""
        if key:
            digest = hashlib.sha256(key).digest()
            if digest in self._hashes:
                return _OF_SETTINGS
            # Also while there seem to be no keys: the first one that is made counts from its first use.
            known = await self._keys.find_or_none(key, digest)
            if known is not None:
                if known.is_revoked:
                    raise _unknown_key(key)
                if self._keys.is_expired(known):
                    raise NotAuthenticated(f"The API key provided has expired: {_masked(key)}.", code="invalid_api_key")
                return known.caller
        if self._hashes or await self._keys.is_any():
            raise _unknown_key(key) if key else _missing_key()
        return None

    def _check_open(self, headers: dict[bytes, bytes]) -> None:
        """Whether a server without keys may answer.

        Any page that the user has open could otherwise work on a server that asks nobody for a key: by calling it from its own site, or
        by giving its own name this machine's address, after which the browser takes the server for that page's own site.
        """
        if self._serves_all:
            is_near = True
        elif self._is_loopback:
            is_near = _is_near(headers.get(b"host"))
        else:
            raise _missing_key()  # a worker's probes on an address that others reach: what is not public is not for them
        if not is_near:
            raise Forbidden(
                "This server has no API keys and answers only to names of this machine, such as localhost. "
                "Make a key with `mini-assistant keys create`, or set serve_without_keys.",
                code="host_not_allowed",
            )
        if headers.get(b"sec-fetch-site") == b"cross-site" and not self._cors.allows(headers.get(b"origin")):
            raise Forbidden("This server has no API keys and refuses requests that other web sites make.", code="cross_site_request")


def check_scope(caller: Caller, scope: str) -> None:
    """Raise Forbidden when the caller's key is not allowed what the route needs."""
    if scope not in caller.scopes:
        raise Forbidden(
            f"You have insufficient permissions for this operation. Missing scopes: {scope}. Check that your key has the correct scopes.",
            code="insufficient_permissions",
        )


def _bearer_key(authorization: bytes | None) -> bytes:
    """The key in the header; empty when there is none."""
    if authorization is None:
        return b""
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _missing_key() -> NotAuthenticated:
    return NotAuthenticated(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY)."
    )


def _unknown_key(key: bytes) -> NotAuthenticated:
    return NotAuthenticated(
        f"Incorrect API key provided: {_masked(key)}. You can find your API key in the settings of this server.",
        code="invalid_api_key",
    )


def _masked(key: bytes) -> str:
    text = key.decode("ascii", "replace")
    return f"{text[:3]}***{text[-4:]}" if len(text) >= 16 else "***"


def _is_near(host: bytes | None) -> bool:
    """Whether a `Host` header can only mean this machine. Browsers always send one."""
    if host is None:
        return True
    name = host.lower()
    name = name[1:].partition(b"]")[0] if name.startswith(b"[") else name.partition(b":")[0]
    if name in (b"127.0.0.1", b"localhost") or name.endswith(_NEAR_NAMES):
        return True
    try:
        return ipaddress.ip_address(name.decode("latin-1")).is_loopback
    except ValueError:
        return False


def _is_assistants_path(path: str) -> bool:
    return path.startswith(("/assistants", "/threads"))
