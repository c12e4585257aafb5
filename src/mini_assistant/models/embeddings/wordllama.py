"""The default embedder."""


class WordllamaEmbedder:
    """An `Embedder` with weights from a package."""

    id = "wordllama-256"

    async def close(self) -> None:
        pass
