"""What the scripted endpoint answers to `/v1/embeddings` and `/rerank`: by the words of the texts, always the same for the same texts."""

import base64
import hashlib
import math
import re
import struct
from typing import Any

DIMENSION = 64


def embedding_answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of `/v1/embeddings`: texts that share words have vectors that are near. The order is that of a busy server: reversed."""
    texts: list[str] = [request["input"]] if isinstance(request["input"], str) else request["input"]
    is_base64 = request.get("encoding_format") == "base64"
    items: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _base64(_vector(text)) if is_base64 else _vector(text)}
        for index, text in enumerate(texts)
    ]
    tokens = sum(len(_words(text)) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": items[::-1], "model": request.get("model", ""), "usage": usage}


def rerank_answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of `/rerank`: a passage's score is the share of the query's words that it has; the best first."""
    asked = set(_words(request["query"]))
    scores = [len(asked & set(_words(text))) / max(1, len(asked)) for text in request["documents"]]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    results = [{"index": index, "relevance_score": scores[index]} for index in order[: request.get("top_n")]]
    return {"model": request.get("model", ""), "results": results}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _vector(text: str) -> list[float]:
    """Each word has a place that its hash gives it."""
    vector = [0.0] * DIMENSION
    for word in _words(text):
        vector[hashlib.sha256(word.encode("utf-8", "replace")).digest()[0] % DIMENSION] += 1.0
    length = math.sqrt(sum(value * value for value in vector))
    return [value / (length or 1.0) for value in vector]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{DIMENSION}f", *vector)).decode()
