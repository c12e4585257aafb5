"""The default embedder: the mean of the vectors of a text's tokens, with the weights that the package `wordllama` carries.

It needs no network and no GPU: a text costs about as much as counting its tokens. Only the two data files of the package are used. Its code
would try a download, so it is not even imported.
"""

import asyncio
import importlib.util
import os
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mini_assistant.models.embeddings.base import EmbeddingFailed, Vectors
from mini_assistant.models.embeddings.rows import embeddable, unit_rows

DIMENSION = 256

_WEIGHTS_FILE = "weights/l2_supercat_256.safetensors"
_TOKENIZER_FILE = "tokenizers/l2_supercat_tokenizer_config.json"
_INSTALL_HINT = 'Run `make setup` in a checkout, or `pip install "mini-assistant[local]"`; or set `embedder`.'
# Texts of one call of a thread: enough to keep it busy, few enough that a cancelled ingest stops within 0.1 s.
_TEXTS_PER_CALL = 32


class WordllamaEmbedder:
    """An `Embedder` without settings. The weights (0.2 s, 40 MB) are loaded by the first use."""

    id = f"wordllama-{DIMENSION}"

    def __init__(self) -> None:
        self._weights: _Weights | None = None
        self._loading = threading.Lock()

    async def embed(self, texts: Sequence[str], kind: Literal["passage", "query"]) -> Vectors:
        """As `Embedder.embed`. Passages and queries are embedded alike; only the first 65,536 characters of a text count."""
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        for at in range(0, len(texts), _TEXTS_PER_CALL):
            vectors[at : at + _TEXTS_PER_CALL] = await asyncio.to_thread(self._embed, texts[at : at + _TEXTS_PER_CALL])
        return vectors

    async def check(self) -> str:
        """As `Embedder.check`."""
        await asyncio.to_thread(self._loaded)
        return f"{self.id}, in this process"

    async def close(self) -> None:
        """As `Embedder.close`."""
        self._weights = None

    def _embed(self, texts: Sequence[str]) -> Vectors:
        return self._loaded().vectors(texts)

    def _loaded(self) -> "_Weights":
        with self._loading:
            if self._weights is None:
                self._weights = _load()
            return self._weights


class _Weights:
    """table: a vector for each token."""

    def __init__(self, tokenizer: Any, table: NDArray[np.float16]) -> None:
        self._tokenizer = tokenizer
        self._table = table

    def vectors(self, texts: Sequence[str]) -> Vectors:
        # The tokenizer has runs of spaces and line ends as tokens of their own. They mean nothing, and without them it is faster.
        encoded = self._tokenizer.encode_batch_fast([" ".join(embeddable(text).split()) for text in texts], add_special_tokens=False)
        totals = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        for row, encoding in enumerate(encoded):
            tokens, counts = np.unique(np.array(encoding.ids, dtype=np.int32), return_counts=True)
            # The mean without its division, which the length of 1 makes up for.
            totals[row] = counts.astype(np.float32) @ self._table[tokens].astype(np.float32)
        return unit_rows(totals)


def _load() -> _Weights:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddingFailed(
            f"The default embedder is not installed: its package `wordllama` is not here. {_INSTALL_HINT}", retryable=False
        )
    folder = Path(spec.submodule_search_locations[0])
    # Batches already are in threads of their own, and a pool of more threads would take the cores from requests.
    os.putenv("TOKENIZERS_PARALLELISM", "false")
    try:
        # By name, because the packages are optional and have no types.
        tokenizers: Any = import_module("tokenizers")
        safetensors: Any = import_module("safetensors.numpy")
        table = safetensors.load_file(folder / _WEIGHTS_FILE)["embedding.weight"]
        tokenizer = tokenizers.Tokenizer.from_buffer((folder / _TOKENIZER_FILE).read_bytes())
    except ImportError as exc:
        raise EmbeddingFailed(f"The default embedder is not installed: {exc}. {_INSTALL_HINT}", retryable=False) from exc
    except (OSError, KeyError, ValueError) as exc:
        raise EmbeddingFailed(f"The weights of the default embedder cannot be read: {exc}. {_INSTALL_HINT}", retryable=False) from exc
    # No token reaches over a space, so words can be looked up one by one, and those that come again are remembered.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    return _Weights(tokenizer, table)
