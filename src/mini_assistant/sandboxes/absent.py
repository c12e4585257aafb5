"""No sandbox: what stands where code cannot be run, with the reason that the model and the user are told."""

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.base import SandboxSession


class NoSandbox:
    """A `Sandbox` that has no sessions. reason: what is missing, and how to get it."""

    name = "none"

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def check(self) -> str:
        """As `Sandbox.check`: there is nothing that could fail."""
        return f"none: {self._reason}"

    async def create_session(self, *, is_warm: bool = False) -> SandboxSession:
        """As `Sandbox.create_session`. Always raises SandboxUnavailable."""
        raise SandboxUnavailable(self._reason)

    async def close(self) -> None:
        """As `Sandbox.close`."""
