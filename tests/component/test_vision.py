"""Images of messages inside a run: what the model is sent for a file, a data URL and an address, and what ends a run."""

import base64
import contextlib
import dataclasses
import sqlite3
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from aiohttp import web
from openai.types.beta.threads import Run

from mini_assistant.app import DATABASE_FILE
from mini_assistant.errors import ModelError
from mini_assistant.models.base import ChatMessage, ImagePart, StoredImagePart, TextPart
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.models.tokens import count_message_tokens
from mini_assistant.runs.images import PromptImages
from mini_assistant.runs.prompt import chat_message
from mini_assistant.settings import ModelSettings, ProviderSettings, Settings
from mini_assistant.threads.schema import ImageFile, ImageFileContent, ImageUrl, ImageUrlContent, Message, TextContent
from mini_assistant.threads.schema import Text as MessageText
from tests.conformance.conversations import CALL_WEATHER, WEATHER, new_assistant, stopped, submit
from tests.conformance.server_settings import server_with


def png(shade: int = 0) -> bytes:
    """A real image of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes([0, shade]))) + chunk(b"IEND", b"")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


GIF = b"GIF89a" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(8)


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The settings of all tests and models that take no images, with the changes that `@server_with(...)` names."""
    models = {
        "blind": ModelSettings(provider="main", images=False),
        "blind-text": ModelSettings(provider="main", images=False, tools="text"),
        "built-in": ModelSettings(provider="builtin"),
    }
    providers = {"main": ProviderSettings(base_url=settings.openai_base_url, retries_max=2)}
    return dataclasses.replace(settings, models=models, providers=providers, **getattr(request, "param", {}))


async def uploaded(sdk: openai.AsyncOpenAI, data: bytes = b"", name: str = "picture.png") -> str:
    return (await sdk.files.create(file=(name, data or png()), purpose="vision")).id


def of_file(file_id: str, **detail: str) -> dict[str, Any]:
    return {"type": "image_file", "image_file": {"file_id": file_id, **detail}}


def of_url(url: str, **detail: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **detail}}


def of_text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


async def asked(sdk: openai.AsyncOpenAI, *messages: Any, **fields: Any) -> Run:
    """A run on a thread with messages of these parts, once it has stopped."""
    assistant = await new_assistant(sdk, **fields)
    content: list[Any] = [{"role": "user", "content": message} for message in messages]
    thread = await sdk.beta.threads.create(messages=content)
    return await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))


async def asked_again(sdk: openai.AsyncOpenAI, run: Run) -> Run:
    return await stopped(sdk, await sdk.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id))


def seen(endpoint: ScriptedEndpoint, request: int = -1) -> list[Any]:
    """What the users' messages of a request hold."""
    return [message["content"] for message in endpoint.requests[request]["messages"] if message["role"] == "user"]


def refusal(run: Run) -> str:
    """The message of a run that failed because of its prompt."""
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "invalid_prompt"
    return run.last_error.message


# ---- files -------------------------------------------------------------------------------------------------------------------------


async def test_the_model_sees_an_uploaded_image_with_its_detail(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    first, second = await uploaded(sdk, png(1)), await uploaded(sdk, png(2))

    run = await asked(sdk, [of_text("What is this?"), of_file(first, detail="low"), of_file(second)])

    assert run.status == "completed"
    assert seen(endpoint) == [
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": data_url(png(1)), "detail": "low"}},
            {"type": "image_url", "image_url": {"url": data_url(png(2)), "detail": "auto"}},
        ]
    ]
    [message] = [message async for message in sdk.beta.threads.messages.list(run.thread_id) if message.role == "user"]
    assert [part.type for part in message.content] == ["text", "image_file", "image_file"], "the message itself keeps its files"


@pytest.mark.parametrize(("data", "kind"), [(GIF, "image/gif"), (JPEG, "image/jpeg"), (WEBP, "image/webp"), (png(), "image/png")])
async def test_the_type_is_that_of_the_bytes(data: bytes, kind: str, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await asked(sdk, [of_file(await uploaded(sdk, data, "picture.bin.png"))])

    assert run.status == "completed"
    assert seen(endpoint)[0][0]["image_url"]["url"] == data_url(data, kind)


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"BM" + bytes(30), b"RIFF\x10\x00\x00\x00WAVE", b"\x89PN"]
)
async def test_a_file_that_is_no_image(data: bytes, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    file_id = await uploaded(sdk, data)

    run = await asked(sdk, [of_text("What is this?"), of_file(file_id)])

    assert refusal(run) == f"The file {file_id} is not an image that models take: png, jpeg, gif and webp are."
    assert len(endpoint.requests) == 0


@server_with(image_bytes_max=1024)
async def test_an_image_that_is_too_large(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    fits, too_large = png() + bytes(1024 - len(png())), png() + bytes(1025 - len(png()))
    file_id = await uploaded(sdk, too_large)

    assert (await asked(sdk, [of_file(await uploaded(sdk, fits))])).status == "completed"
    assert (await asked(sdk, [of_url(data_url(fits))])).status == "completed"
    assert refusal(await asked(sdk, [of_file(file_id)])) == f"The image {file_id} is larger than 1024 bytes."
    assert refusal(await asked(sdk, [of_url(data_url(too_large + b"xx"))])) == "The image in a data URL is larger than 1024 bytes."
    assert len(endpoint.requests) == 2


async def test_a_thread_outlives_a_deleted_image(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    kept, deleted = await uploaded(sdk, png(1)), await uploaded(sdk, png(2))
    run = await asked(sdk, [of_file(deleted)], [of_text("And this?"), of_file(kept), of_file(deleted)])
    assert run.status == "completed"
    await sdk.files.delete(deleted)

    assert (await asked_again(sdk, run)).status == "completed"

    first, second = seen(endpoint)
    assert first == f"[image {deleted} is gone]"
    assert [part.get("text") for part in second] == ["And this?", None, f"[image {deleted} is gone]"]


async def test_the_bytes_of_an_image_are_gone(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, settings: Settings) -> None:
    file_id = await uploaded(sdk)
    for blob in (settings.data_dir / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()

    assert (await asked(sdk, [of_file(file_id)])).status == "completed"
    assert seen(endpoint) == [f"[image {file_id} is gone]"]


async def test_images_of_other_projects(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, settings: Settings) -> None:
    file_id = await uploaded(sdk)
    run = await asked(sdk, [of_file(file_id)])
    with contextlib.closing(sqlite3.connect(settings.data_dir / DATABASE_FILE, timeout=20)) as connection, connection:
        connection.execute("UPDATE files SET project_id = 'other' WHERE id = ?", [file_id])

    with pytest.raises(openai.NotFoundError):
        await asked(sdk, [of_file(file_id)])
    assert (await asked_again(sdk, run)).status == "completed"
    assert seen(endpoint) == [f"[image {file_id} is gone]"]


@server_with(images_per_prompt_max=2)
async def test_only_the_newest_images_are_shown(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    ids = [await uploaded(sdk, png(shade)) for shade in range(3)]

    run = await asked(
        sdk, [of_text("Old"), of_url(data_url(png(9)))], [of_file(ids[0])], [of_file(ids[1]), of_file(ids[2]), of_text("New")]
    )

    assert run.status == "completed"
    oldest, older, newest = seen(endpoint)
    assert oldest == "Old\n\n[image is left out]"
    assert older == f"[image {ids[0]} is left out]"
    assert [part.get("image_url", {}).get("url") for part in newest] == [data_url(png(1)), data_url(png(2)), None]


@server_with(images_per_prompt_max=0)
async def test_no_images_may_be_shown(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assert (await asked(sdk, [of_url("https://images.example/a.png")])).status == "completed"
    assert seen(endpoint) == ["[image is left out]"]


@server_with(image_bytes_max=30 * 1024 * 1024, images_per_prompt_max=3)
async def test_all_images_together_are_limited(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    large = png() + bytes(25_000_000)
    ids = [await uploaded(sdk, png(1)), await uploaded(sdk, large), await uploaded(sdk, large + b"x")]

    assert (await asked(sdk, [of_file(file_id) for file_id in ids])).status == "completed"

    [parts] = seen(endpoint)
    assert [part.get("text") for part in parts] == [f"[image {ids[0]} is left out]", f"[image {ids[1]} is left out]", None]


async def test_an_image_is_shown_to_each_turn(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    file_id = await uploaded(sdk)
    run = await asked(sdk, [of_text(CALL_WEATHER), of_file(file_id)], tools=[WEATHER])
    assert run.status == "requires_action"

    run = await stopped(sdk, await submit(sdk, run, "sun"))

    assert run.status == "completed"
    assert [seen(endpoint, request)[0][1]["image_url"]["url"] for request in (0, 1)] == [data_url(png())] * 2


async def test_images_are_kept_between_prompts_and_dropped_with_their_messages(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    async def read(self: PromptImages, file_id: str) -> str:
        calls.append(file_id)
        return data_url(file_id.encode())

    monkeypatch.setattr(PromptImages, "_file_url_or_none", read)
    images = PromptImages(_Holder(settings), "default")  # type: ignore[arg-type]
    a, b = (ChatMessage("user", (TextPart("Look"), StoredImagePart(name, "high"))) for name in "ab")

    for messages in ([a], [a, b, a], [b], [a]):
        placed = await images.put_in(messages, "m", takes_images=True)
        assert [message.content for message in placed] == [
            (TextPart("Look"), ImagePart(data_url(b"a" if message is a else b"b"), "high")) for message in messages
        ]

    assert calls == ["a", "b", "a"]
    with pytest.raises(ModelError, match="does not take images"):
        await images.put_in([b], "m", takes_images=False)
    assert calls == ["a", "b", "a"], "what nobody would see is not read"


@dataclasses.dataclass(frozen=True)
class _Holder:
    settings: Settings


# ---- what an assistant has shown ---------------------------------------------------------------------------------------------------


def test_a_figure_of_an_assistant_is_named() -> None:
    image, by_url = ImageFileContent(ImageFile("file-1")), ImageUrlContent(ImageUrl("https://images.example/a.png", "high"))
    fields: dict[str, Any] = {"id": "msg_1", "created_at": 1, "assistant_id": None, "thread_id": "t", "run_id": None, "status": "completed"}
    content = [image, TextContent(MessageText("Here it is.")), by_url]

    of_assistant = chat_message(Message(role="assistant", content=content, attachments=[], metadata={}, **fields))
    of_user = chat_message(Message(role="user", content=content, attachments=[], metadata={}, **fields))

    assert of_assistant == ChatMessage("assistant", "[figure: file-1]\n\nHere it is.")
    by_address = ImagePart("https://images.example/a.png", "high")
    assert of_user == ChatMessage("user", (StoredImagePart("file-1"), TextPart("Here it is."), by_address))


@pytest.mark.parametrize(("detail", "tokens"), [("low", 89), ("auto", 769), ("high", 769)])
def test_tokens_of_an_image_do_not_depend_on_where_it_lies(detail: str, tokens: int) -> None:
    for part in (StoredImagePart("file-1", detail), ImagePart(data_url(png()), detail), ImagePart("https://images.example/a.png", detail)):
        assert count_message_tokens(ChatMessage("user", (part,))) == tokens


# ---- data URLs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (data_url(png()), data_url(png())),
        (data_url(JPEG, "image/jpg"), data_url(JPEG, "image/jpeg")),
        (data_url(GIF, "image/png"), data_url(GIF, "image/gif")),
        (data_url(png()).replace("data:image", "DATA:IMAGE"), data_url(png())),
        (data_url(png()).replace("png;", "png;name=a.png;"), data_url(png())),
    ],
)
async def test_a_data_url_is_passed_on_with_its_real_type(
    url: str, shown: str, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint
) -> None:
    assert (await asked(sdk, [of_url(url, detail="high")])).status == "completed"
    assert seen(endpoint) == [[{"type": "image_url", "image_url": {"url": shown, "detail": "high"}}]]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:", "must begin like"),
        ("data:,", "must begin like"),
        ("data:image/png,abc", "must begin like"),
        ("data:image/png;base64", "not an image"),
        ("data:image/png;base64,", "not an image"),
        (data_url(png(), "text/html"), "must begin like"),
        (data_url(b"<svg/>", "image/svg+xml"), "not an image"),
        (data_url(png())[:-1], "not valid base64"),
        (data_url(png()) + "\n", "not valid base64"),
        (data_url(png()) + "é", "not valid base64"),
        (data_url(png()).replace("iVBOR", "iVB-_"), "not valid base64"),
        (" " + data_url(png()), "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("ftp://images.example/a.png", "must begin with"),
        ("images.example/a.png", "must begin with"),
        ("https://images.example/" + "a" * 8192, "must begin with"),
    ],
)
async def test_addresses_that_hold_no_image(url: str, message: str, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assert message in refusal(await asked(sdk, [of_text("What is this?"), of_url(url)]))
    assert len(endpoint.requests) == 0


# ---- remote images -----------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(data: bytes, content_type: str = "image/png") -> AsyncIterator[tuple[str, list[str]]]:
    """A server with one image: its address, and the paths that it was asked for."""
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path_qs)
        return web.Response(body=data, content_type=content_type)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", paths
    finally:
        await runner.cleanup()


async def test_an_address_is_passed_on(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    async with serving(png()) as (address, paths):
        assert (await asked(sdk, [of_url(f"{address}/a.png?b=c", detail="low")])).status == "completed"

    assert seen(endpoint) == [[{"type": "image_url", "image_url": {"url": f"{address}/a.png?b=c", "detail": "low"}}]]
    assert paths == []


@server_with(remote_images="refuse")
async def test_addresses_are_refused(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assert "takes no images by address" in refusal(await asked(sdk, [of_url("https://images.example/a.png")]))
    assert len(endpoint.requests) == 0
    assert (await asked(sdk, [of_url(data_url(png()))])).status == "completed"


@server_with(remote_images="fetch", private_addresses=True)
async def test_an_address_is_fetched(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    async with serving(png()) as (address, paths):
        run = await asked(sdk, [of_url(f"{address}/a.png", detail="low"), of_url(f"{address}/a.png")])

    assert run.status == "completed"
    images = [{"type": "image_url", "image_url": {"url": data_url(png()), "detail": detail}} for detail in ("low", "auto")]
    assert seen(endpoint) == [images]
    assert paths == ["/a.png"], "the same address is fetched once"


@server_with(remote_images="fetch", private_addresses=True, image_bytes_max=1024)
@pytest.mark.parametrize(
    ("data", "content_type", "message"),
    [
        (png(), "text/html", "is not an image"),
        (png(), "application/octet-stream", "is not an image"),
        (b"<html>", "image/png", "is not an image that models take"),
        (b"", "image/png", "is not an image that models take"),
        (png() + bytes(1024), "image/png", "could not be fetched: it is larger than 1024 bytes"),
    ],
)
async def test_an_address_that_gives_no_image(
    data: bytes, content_type: str, message: str, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint
) -> None:
    async with serving(data, content_type) as (address, _):
        told = refusal(await asked(sdk, [of_url(f"{address}/a.png?key=secret")]))

    assert message in told
    assert f"{address}/a.png" in told
    assert "secret" not in told
    assert len(endpoint.requests) == 0


@server_with(remote_images="fetch")
async def test_no_private_address_is_fetched(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    async with serving(png()) as (address, paths):
        told = refusal(await asked(sdk, [of_url(f"{address}/a.png")]))
        closed = refusal(await asked(sdk, [of_url("http://127.0.0.1:1/a.png")]))

    assert paths == []
    assert told == f"The image at {address}/a.png could not be fetched: the host '127.0.0.1' has no public address."
    assert closed == told.replace(address, "http://127.0.0.1:1"), "nobody can learn which ports are open"
    assert len(endpoint.requests) == 0


@server_with(remote_images="fetch")
async def test_keys_in_an_address_are_not_told(sdk: openai.AsyncOpenAI) -> None:
    told = refusal(await asked(sdk, [of_url("https://user:word@images.example/a.png?key=word#word")]))

    assert told == "The image at https://images.example/a.png could not be fetched: the URL must not contain a user or a password."


# ---- models without eyes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["blind", "blind-text", "built-in"])
@pytest.mark.parametrize("kind", ["file", "data", "address"])
async def test_a_model_that_takes_no_images(kind: str, model: str, sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    image = (
        of_file(await uploaded(sdk)) if kind == "file" else of_url(data_url(png()) if kind == "data" else "https://images.example/a.png")
    )

    run = await asked(sdk, [of_text("What is this?"), image], model=model, tools=[WEATHER])

    assert refusal(run) == f"The model '{model}' does not take images."
    assert len(endpoint.requests) == 0, "and it is not tried again"
    [message] = [message async for message in sdk.beta.threads.messages.list(run.thread_id, order="asc")]
    assert message.role == "user"
    assert (await asked(sdk, [of_text("What is this?")], model=model)).status == "completed"
