"""Parses documents in processes of their own, under limits."""

from mini_assistant.settings import Settings


class ParserProcesses:
    """A `DocumentParser`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def close(self) -> None:
        pass
