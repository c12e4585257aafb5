"""The images of a prompt: puts bytes in the place of files, checks data URLs, and passes on, fetches or refuses addresses.

Called by the loop when a prompt has been fitted, so only images that are shown are read. What is not there any more, and what is too
much, becomes a line of text: a long thread lives on when an old image is deleted. An image that nobody can show ends the run.
"""

import asyncio
import base64
import re
from collections.abc import Sequence

import msgspec

from mini_assistant.errors import BlobMissing, ModelError
from mini_assistant.files.store import get_file_or_none
from mini_assistant.models.base import ChatMessage, ImagePart, StoredImagePart, TextPart
from mini_assistant.outbound import FetchLimits, OutboundRefused, fetch
from mini_assistant.services import Services

_URL_CHARACTERS_MAX = 8192
_TYPES = "png, jpeg, gif and webp"

AnyPart = TextPart | ImagePart | StoredImagePart


class PromptImages:
    """The images of the prompts of one run; each is read and encoded once, and kept as long as the prompts show it."""

    def __init__(self, services: Services, project_id: str) -> None:
        self._services = services
        self._project_id = project_id
        # What is shown in the place of a file's id or of a URL.
        self._ready: dict[str, str] = {}

    async def put_in(self, messages: Sequence[ChatMessage], model: str, *, takes_images: bool) -> tuple[ChatMessage, ...]:
        """The same messages with images that a provider can be sent. No StoredImagePart is left.

        The newest images are shown, up to `images_per_prompt_max`. Raises ModelError (`invalid_prompt`) when the model takes no images,
        or one cannot be shown: it is none, is too large, or its address gives none.
        """
        if not any(not isinstance(part, TextPart) for message in messages for part in _parts(message)):
            self._ready = {}
            return tuple(messages)
        if not takes_images:
            raise ModelError(f"The model '{model}' does not take images.", code="invalid_prompt")
        room = _Room(self._services)
        used: dict[str, str] = {}
        placed: list[ChatMessage] = []
        for message in reversed(messages):
            parts = [await self._shown(part, room, used) for part in reversed(_parts(message))]
            placed.append(msgspec.structs.replace(message, content=_content(parts[::-1])) if parts else message)
        self._ready = used
        return tuple(reversed(placed))

    async def _shown(self, part: AnyPart, room: "_Room", used: dict[str, str]) -> TextPart | ImagePart:
        if isinstance(part, TextPart):
            return part
        key, name = (part.file_id, f"image {part.file_id}") if isinstance(part, StoredImagePart) else (part.url, "image")
        if room.images == 0:
            return TextPart(f"[{name} is left out]")
        url = used.get(key) or self._ready.get(key) or await self._url_or_none(part)
        if url is None:
            return TextPart(f"[{name} is gone]")
        if not room.take(url):
            return TextPart(f"[{name} is left out]")
        used[key] = url
        return ImagePart(url, part.detail)

    async def _url_or_none(self, part: ImagePart | StoredImagePart) -> str | None:
        """What a provider is sent for an image; None for a file that is gone."""
        if isinstance(part, StoredImagePart):
            return await self._file_url_or_none(part.file_id)
        scheme = part.url[:8].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(_checked_data_url, part.url, self._services.settings.image_bytes_max)
        if scheme not in ("http", "https") or len(part.url) > _URL_CHARACTERS_MAX:
            raise _unusable(
                f"The URL of an image must begin with https:, http: or data:, and be at most {_URL_CHARACTERS_MAX} characters long."
            )
        return await self._remote_url(part.url)

    async def _file_url_or_none(self, file_id: str) -> str | None:
        record = await get_file_or_none(self._services, self._project_id, file_id)
        if record is None:
            return None
        bytes_max = self._services.settings.image_bytes_max
        if record.file.bytes > bytes_max:
            raise _unusable(f"The image {file_id} is larger than {bytes_max} bytes.")
        try:
            data = b"".join([piece async for piece in self._services.blobs.read(record.blob_key)])
        except BlobMissing:
            return None
        return await asyncio.to_thread(_data_url, data, f"The file {file_id}")

    async def _remote_url(self, url: str) -> str:
        settings = self._services.settings
        if settings.remote_images == "pass":
            return url
        if settings.remote_images != "fetch":
            raise _unusable("This server takes no images by address. Upload the image, or send it as a data: URL.")
        limits = FetchLimits(settings.image_bytes_max, settings.remote_image_timeout_seconds, settings.private_addresses)
        try:
            fetched = await fetch(url, limits)
        except OutboundRefused as exc:
            raise _unusable(f"The image at {_short(url)} could not be fetched: {exc.message}.") from exc
        if not fetched.content_type.startswith("image/"):
            raise _unusable(f"What lies at {_short(url)} is not an image.")
        return await asyncio.to_thread(_data_url, fetched.data, f"What lies at {_short(url)}")


class _Room:
    """What may still be shown in a prompt."""

    def __init__(self, services: Services) -> None:
        self.images = services.settings.images_per_prompt_max
        # Encoded; one image always has room.
        bytes_max = max(services.settings.image_bytes_per_prompt_max, services.settings.image_bytes_max)
        self._characters = bytes_max * 4 // 3 + 100

    def take(self, url: str) -> bool:
        """Whether there is room for an image. When there is not, there is none for older ones either."""
        self._characters -= len(url)
        self.images = self.images - 1 if self._characters >= 0 else 0
        return self._characters >= 0


def _parts(message: ChatMessage) -> Sequence[AnyPart]:
    return () if isinstance(message.content, str) else message.content


def _content(parts: Sequence[TextPart | ImagePart]) -> tuple[TextPart | ImagePart, ...] | str:
    """Parts as a message's content: text alone is one text, which every server understands."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n\n".join(texts) if len(texts) == len(parts) else tuple(parts)


def _image_type_or_none(data: bytes) -> str | None:
    """The type of an image by its first bytes."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _data_url(data: bytes, what: str) -> str:
    kind = _image_type_or_none(data)
    if kind is None:
        raise _unusable(f"{what} is not an image that models take: {_TYPES} are.")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _checked_data_url(url: str, bytes_max: int) -> str:
    """A data URL that holds an image, under its real type."""
    head, _, payload = url.partition(",")
    kind, *parameters = head[5:].lower().split(";")
    if not kind.startswith("image/") or parameters[-1:] != ["base64"]:
        raise _unusable("The data URL of an image must begin like data:image/png;base64, and go on with its bytes in base64.")
    if len(payload) > (bytes_max + 2) // 3 * 4:
        raise _unusable(f"The image in a data URL is larger than {bytes_max} bytes.")
    try:
        data = base64.b64decode(payload, validate=True)
    except ValueError:
        raise _unusable("The data URL of an image is not valid base64.") from None
    kind = _image_type_or_none(data)
    if kind is None:
        raise _unusable(f"What a data URL holds is not an image that models take: {_TYPES} are.")
    return f"data:{kind};base64,{payload}"


def _short(url: str) -> str:
    """A URL in a message: without its user and query, which may be secret."""
    return re.sub("//[^/]*@", "//", url.partition("#")[0].partition("?")[0])[:200]


def _unusable(message: str) -> ModelError:
    return ModelError(message, code="invalid_prompt")
