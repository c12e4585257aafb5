"""An embedder with the models of the package `fastembed`, which runs them in this process and downloads them on first use."""

import asyncio
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np

from mini_assistant.models.embeddings.base import EmbeddingFailed, Vectors
from mini_assistant.models.embeddings.rows import embeddable, unit_rows

# Texts of one call of a thread. A passage takes up to 0.2 s, so a cancelled ingest stops within seconds.
_TEXTS_PER_CALL = 16


class FastembedEmbedder:
    """An `Embedder` with one of fastembed's models. cache_dir: where it is kept; downloaded and loaded by the first use."""

    def __init__(self, model: str, cache_dir: str) -> None:
        self.id = f"fastembed:{model}"
        self._model = model
        self._cache_dir = cache_dir
        self._loaded: Any = None
        # One at a time: the model itself uses all cores.
        self._turn = threading.Lock()

    async def embed(self, texts: Sequence[str], kind: Literal["passage", "query"]) -> Vectors:
        """As `Embedder.embed`."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        parts = [
            await asyncio.to_thread(self._embed, texts[at : at + _TEXTS_PER_CALL], kind) for at in range(0, len(texts), _TEXTS_PER_CALL)
        ]
        return np.concatenate(parts)

    async def check(self) -> str:
        """As `Embedder.check`. It downloads the model when it is not here yet."""
        vectors = await self.embed(["check"], "query")
        return f"{self.id}, {vectors.shape[1]} dimensions, in this process"

    async def close(self) -> None:
        """As `Embedder.close`."""
        self._loaded = None

    def _embed(self, texts: Sequence[str], kind: Literal["passage", "query"]) -> Vectors:
        valid = [embeddable(text) for text in texts]
        with self._turn:
            model = self._model_loaded()
            try:
                rows = list(model.passage_embed(valid) if kind == "passage" else model.query_embed(valid))
            except (OSError, RuntimeError, ValueError) as exc:
                raise EmbeddingFailed(f"fastembed's model '{self._model}' failed: {exc}") from exc
        return unit_rows(np.array(rows))

    def _model_loaded(self) -> Any:
        if self._loaded is None:
            try:
                # By name, because the package is optional and has no types.
                fastembed: Any = import_module("fastembed")
            except ImportError as exc:
                message = (
                    f"The embedder 'fastembed' is not installed: {exc}. Run `pip install \"mini-assistant[fastembed]\"`, "
                    "or `.venv/bin/pip install fastembed` in a checkout; or set `embedder`."
                )
                raise EmbeddingFailed(message, retryable=False) from exc
            try:
                self._loaded = fastembed.TextEmbedding(model_name=self._model, cache_dir=self._cache_dir)
            except ValueError as exc:
                raise EmbeddingFailed(f"fastembed cannot load the model '{self._model}': {exc}", retryable=False) from exc
            except (OSError, RuntimeError) as exc:  # the download failed
                raise EmbeddingFailed(f"fastembed cannot load the model '{self._model}': {exc}") from exc
        return self._loaded
