"""What every `Reranker` promises, over HTTP and in the shapes in which servers answer."""

import asyncio
import contextlib

import msgspec
import pytest
from aiohttp import web

from mini_assistant.app import build_reranker
from mini_assistant.errors import ConfigError
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.models.rerank.base import RerankFailed
from mini_assistant.models.rerank.endpoint import RerankEndpoint
from mini_assistant.settings import Settings

KEY = "sk-test-0123456789abcdef"
NO_RETRIES = ProviderLimits(retries_max=0)
PASSAGES = ["bread rises in the oven", "the tower was built of iron", "a tower"]


@contextlib.asynccontextmanager
async def reranking(answer, limits=NO_RETRIES, model="m"):
    """A re-ranker whose server answers by `answer(body, request)`."""

    async def respond(request):
        answered = answer(msgspec.json.decode(await request.read()), request)
        return await answered if asyncio.iscoroutine(answered) else answered

    application = web.Application()
    application.router.add_post("/rerank", respond)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reranker = RerankEndpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/rerank", model, api_key=KEY, limits=limits)
    try:
        yield reranker
    finally:
        await reranker.close()
        await runner.cleanup()


async def test_the_scripted_endpoint_is_read_in_the_order_of_the_passages(endpoint):
    reranker = RerankEndpoint(f"{endpoint.base_url}/rerank", "m", limits=NO_RETRIES)
    assert await reranker.scores("iron tower", PASSAGES) == [0.0, 1.0, 0.5]
    assert await reranker.scores("iron tower", []) == []
    assert "/rerank" in await reranker.check()
    await reranker.close()


async def test_what_is_sent():
    seen = []

    def answer(body, request):
        seen.append((body, request.headers["Authorization"]))
        return web.json_response({"results": [{"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0.5}]})

    async with reranking(answer) as reranker:
        await reranker.scores("q \ud800", ["a", "b"])
    assert seen == [({"model": "m", "query": "q ?", "documents": ["a", "b"], "top_n": 2}, f"Bearer {KEY}")]


@pytest.mark.parametrize(
    "answered",
    [
        {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.25}]},  # Cohere
        {  # Jina, vLLM
            "model": "m",
            "usage": {"total_tokens": 9},
            "results": [{"index": 1, "relevance_score": 0.9, "document": {"text": "b"}}, {"index": 0, "relevance_score": 0.25}],
        },
        [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.25}],  # TEI
    ],
)
async def test_the_shapes_of_the_servers(answered):
    async with reranking(lambda body, request: web.json_response(answered)) as reranker:
        assert await reranker.scores("q", ["a", "b"]) == [0.25, 0.9]


async def test_a_server_with_another_name_for_the_passages_is_asked_in_its_way_from_then_on():
    fields = []

    def answer(body, request):
        fields.append(sorted(body))
        if "texts" not in body:
            return web.Response(status=422, text="Failed to deserialize the JSON body: missing field `texts` at line 1")
        return web.json_response([{"index": 0, "score": 1}])

    async with reranking(answer, model="") as reranker:
        assert await reranker.scores("q", ["a"]) == [1]
        assert await reranker.scores("q", ["a"]) == [1]
    assert fields == [["documents", "query", "top_n"], ["query", "texts"], ["query", "texts"]]


async def test_scores_of_another_scale_come_into_range_and_keep_their_order():
    logits = [-800.0, -2.0, 0.0, 0.5, 7.5, 900.0]
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(logits)]
    async with reranking(lambda body, request: web.json_response({"results": results})) as reranker:
        scores = await reranker.scores("q", ["x"] * 6)
    assert scores == sorted(scores)
    assert all(0 <= score <= 1 for score in scores)
    assert scores[2] == 0.5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (web.json_response({"error": {"message": f"bad key {KEY}"}}, status=401), "refused the key"),
        (web.Response(status=500, text="oops"), "HTTP 500"),
        (web.Response(text="<html>"), "holds no scores"),
        (web.json_response({"results": [{"index": 0, "relevance_score": 0.5}]}), "1 results for 2 passages"),
        (web.json_response({"results": [{"index": 0, "relevance_score": 0.5}, {"index": 2, "relevance_score": 0.5}]}), "holds no scores"),
        (web.json_response({"results": [{"index": 0, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.5}]}), "holds no scores"),
        (web.json_response({"results": [{"index": 0}, {"index": 1}]}), "without a score"),
        (web.json_response([1, 2]), "holds no scores"),
    ],
)
async def test_bad_answers_are_failures(answer, words):
    async with reranking(lambda body, request: answer) as reranker:
        with pytest.raises(RerankFailed) as failed:
            await reranker.scores("q", ["a", "b"])
    assert words in failed.value.message
    assert KEY not in failed.value.message


async def test_the_time_limit_is_that_of_all_attempts():
    limits = ProviderLimits(retries_max=5, first_token_timeout_seconds=0.3, retry_pause_seconds=0.1)
    async with reranking(lambda body, request: web.Response(status=503), limits) as reranker, asyncio.timeout(2):
        with pytest.raises(RerankFailed, match=r"0\.3 seconds"):
            await reranker.scores("q", ["a"])
    async with reranking(lambda body, request: asyncio.sleep(30), limits) as reranker, asyncio.timeout(2):
        with pytest.raises(RerankFailed, match=r"0\.3 seconds"):
            await reranker.scores("q", ["a"])


async def test_it_tries_again_when_that_may_help():
    attempts = []

    def answer(body, request):
        attempts.append(body)
        return web.Response(status=503) if len(attempts) < 3 else web.json_response([{"index": 0, "score": 0.5}])

    async with reranking(answer, ProviderLimits(retries_max=2, retry_pause_seconds=0.001)) as reranker:
        assert await reranker.scores("q", ["a"]) == [0.5]


def test_the_setting_chooses(tmp_path):
    assert build_reranker(Settings(data_dir=tmp_path)) is None
    assert build_reranker(Settings(data_dir=tmp_path, rerank_url="http://127.0.0.1:1/rerank")) is not None
    with pytest.raises(ConfigError, match="rerank_url"):
        build_reranker(Settings(data_dir=tmp_path, rerank_url="localhost:8080/rerank"))
