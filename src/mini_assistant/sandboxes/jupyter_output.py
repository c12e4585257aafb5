"""Turns what a kernel puts out for one call into logs and figures, as much of it as a call may have."""

import binascii
import re
from collections.abc import Callable

import msgspec

from mini_assistant.sandboxes.base import Image, Logs, Output
from mini_assistant.sandboxes.jupyter_channels import Message, ValueOf, decoded_content
from mini_assistant.settings import Settings

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# IPython colours its tracebacks.
_ANSI = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")


class _Stream(msgspec.Struct):
    text: str


class _Shown(msgspec.Struct):
    data: ValueOf


class _Error(msgspec.Struct):
    traceback: list[str]


class CallOutput:
    """The output of one call; told to on_output as it comes."""

    def __init__(self, settings: Settings, on_output: Callable[[Output], None]) -> None:
        self._on_output = on_output
        self._log_bytes_max = self._log_bytes_left = settings.sandbox_log_bytes_max
        self._image_bytes_max = settings.sandbox_image_bytes_max
        self._images_max = self._images_left = settings.sandbox_images_max

    def take(self, message: Message) -> None:
        """Tell what a message shows; what shows nothing, or is not as it should be, is ignored."""
        match message.header.msg_type:
            case "stream":
                if (stream := decoded_content(message, _Stream)) is not None:
                    self._log(stream.text)
            case "display_data" | "execute_result":
                if (shown := decoded_content(message, _Shown)) is not None:
                    self._show(shown.data)
            case "error":
                if (error := decoded_content(message, _Error)) is not None:
                    self._log(_ANSI.sub("", "\n".join(error.traceback)).rstrip("\n") + "\n")
            case _:
                pass

    def _show(self, value: ValueOf) -> None:
        if value.png:
            self._show_image(value.png)
        elif value.text:
            self._log(value.text + "\n")

    def _show_image(self, png: str) -> None:
        if len(png) > self._image_bytes_max // 3 * 4 + 4:
            self._log(f"[A figure was left out: it has more than {self._image_bytes_max} bytes.]\n")
            return
        try:
            data = binascii.a2b_base64(png)
        except ValueError:
            return
        if not data.startswith(_PNG_SIGNATURE):
            return
        self._images_left -= 1
        if self._images_left >= 0:
            self._on_output(Image(data))
        elif self._images_left == -1:
            self._log(f"[Figures after the first {self._images_max} were left out.]\n")

    def _log(self, text: str) -> None:
        if not text or self._log_bytes_left < 0:
            return
        encoded = text.encode()
        if len(encoded) > self._log_bytes_left:
            text = encoded[: self._log_bytes_left].decode(errors="ignore")
            text += f"\n[Logs after the first {self._log_bytes_max} bytes were left out.]\n"
            self._log_bytes_left = -1
        else:
            self._log_bytes_left -= len(encoded)
        self._on_output(Logs(text))
