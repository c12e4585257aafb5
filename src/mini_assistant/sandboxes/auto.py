"""The sandbox `auto`: the first of several that works here, else none. It is tried when it is first needed, and never changed then."""

import asyncio
import logging
from collections.abc import Sequence

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.absent import NoSandbox
from mini_assistant.sandboxes.base import Sandbox, SandboxSession

log = logging.getLogger("mini_assistant.sandboxes")


class AutoSandbox:
    """A `Sandbox` that is one of the candidates, the best first. Which one is found out by their own checks."""

    name = "auto"

    def __init__(self, candidates: Sequence[Sandbox]) -> None:
        self._candidates = candidates
        self._choosing = asyncio.Lock()
        self._chosen: tuple[Sandbox, str] | None = None

    async def check(self) -> str:
        """As `Sandbox.check`: which one is active, and why each of the others is not. Never raises: none is an answer, too."""
        _, told = await self._choice()
        return told

    async def create_session(self, *, is_warm: bool = False) -> SandboxSession:
        """As `Sandbox.create_session`, of the one that works here."""
        chosen, _ = await self._choice()
        return await chosen.create_session(is_warm=is_warm)

    async def close(self) -> None:
        """As `Sandbox.close`."""
        for candidate in self._candidates:
            await candidate.close()

    async def _choice(self) -> tuple[Sandbox, str]:
        async with self._choosing:
            if self._chosen is None:
                self._chosen = await self._chosen_now()
            return self._chosen

    async def _chosen_now(self) -> tuple[Sandbox, str]:
        refused: list[str] = []
        for place, candidate in enumerate(self._candidates, start=1):
            try:
                told = await candidate.check()
            except SandboxUnavailable as exc:
                refused.append(f"{candidate.name}: {exc.message}")
            else:
                rest = [f"{other.name}: not needed" for other in self._candidates[place:]]
                return candidate, f"{candidate.name}: {told}" + "".join(f"; {reason}" for reason in (*refused, *rest))
        reason = "There is no sandbox to run code in. " + " ".join(refused)
        log.warning("code_interpreter: %s", reason)
        return NoSandbox(reason), f"none; {'; '.join(refused)}"
