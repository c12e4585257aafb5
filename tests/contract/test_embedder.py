"""What every `Embedder` promises: the one in the package on its real weights, the endpoint over HTTP, fastembed with a stand-in model."""

import asyncio
import base64
import contextlib
import importlib.util
import socket
import struct
import sys
import threading
import time
import types

import msgspec
import numpy as np
import pytest
from aiohttp import web

from mini_assistant.administration import checked_parts
from mini_assistant.app import build_embedder
from mini_assistant.errors import ConfigError
from mini_assistant.models.embeddings.base import EmbeddingFailed
from mini_assistant.models.embeddings.fastembed import FastembedEmbedder
from mini_assistant.models.embeddings.openai_compatible import EmbeddingsEndpoint
from mini_assistant.models.embeddings.wordllama import WordllamaEmbedder
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings

KEY = "sk-test-0123456789abcdef"
NO_RETRIES = ProviderLimits(retries_max=0)
FAST_RETRIES = ProviderLimits(retries_max=2, retry_pause_seconds=0.001)
SHORT = ProviderLimits(retries_max=0, first_token_timeout_seconds=0.3)

TOWERS = "The Eiffel tower in Paris was built of iron by Gustave Eiffel."
BREAD = "Knead the dough, let the bread rise and bake it in a hot oven."

needs_weights = pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="the built-in embedder is not installed")


class StandInModel:
    """As fastembed's TextEmbedding is used: a vector by the words, not of length 1."""

    def __init__(self, model_name, cache_dir):
        if model_name == "unknown":
            raise ValueError("Model unknown is not supported in TextEmbedding.")
        if model_name == "offline":
            raise OSError("no route to host")

    def passage_embed(self, texts):
        for text in texts:
            vector = np.zeros(8, dtype=np.float32)
            for word in text.lower().split():
                vector[sum(word.encode()) % 8] += 3
            yield vector

    query_embed = passage_embed


@pytest.fixture
def fastembed(monkeypatch):
    module = types.ModuleType("fastembed")
    module.TextEmbedding = StandInModel
    monkeypatch.setitem(sys.modules, "fastembed", module)


@pytest.fixture(params=[pytest.param("builtin", marks=needs_weights), "openai", "fastembed"])
async def embedder(request, fastembed, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        match request.param:
            case "builtin":
                embedder = WordllamaEmbedder()
            case "openai":
                endpoint = await stack.enter_async_context(ScriptedEndpoint())
                embedder = EmbeddingsEndpoint(endpoint.base_url, "m", api_key=KEY, limits=NO_RETRIES)
            case _:
                embedder = FastembedEmbedder("m", str(tmp_path))
        stack.push_async_callback(embedder.close)
        yield embedder


async def test_a_row_for_each_text_in_their_order(embedder):
    texts = [f"{word} {number}" for number in range(60) for word in ("tower", "bread")]
    vectors = await embedder.embed(texts, "passage")
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == 120
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for place in (0, 33, 119):
        alone = await embedder.embed([texts[place]], "passage")
        np.testing.assert_allclose(vectors[place], alone[0], atol=1e-6)


async def test_the_same_texts_have_the_same_vectors(embedder):
    once = await embedder.embed([TOWERS, BREAD], "passage")
    again = await embedder.embed([TOWERS, BREAD], "passage")
    assert once.tobytes() == again.tobytes()


async def test_texts_that_share_words_are_nearer(embedder):
    passages = await embedder.embed([TOWERS, BREAD], "passage")
    query = await embedder.embed(["Who built the tower in Paris"], "query")
    tower, bread = (passages @ query[0]).tolist()
    assert tower > bread


async def test_a_text_without_a_word_has_zeros_and_disturbs_nobody(embedder):
    vectors = await embedder.embed(["", TOWERS, " \n"], "passage")
    assert not vectors[0].any()
    assert not vectors[2].any()
    assert np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-5)
    assert not (await embedder.embed([""], "query")).any()


async def test_no_texts_have_no_rows(embedder):
    assert len(await embedder.embed([], "passage")) == 0


async def test_texts_that_no_tokenizer_expects(embedder):
    texts = ["\ud800 lone surrogate", "\x00", "漢字かな", "🎉" * 50, "word" * 40_000, "a " * 100_000]
    async with asyncio.timeout(20):
        vectors = await embedder.embed(texts, "passage")
    assert np.isfinite(vectors).all()
    assert vectors.shape[0] == 6


async def test_it_says_what_it_is(embedder):
    assert embedder.id in await embedder.check()


# ---- the built-in one --------------------------------------------------------------------------------------------------------------


@needs_weights
async def test_the_built_in_vectors_are_the_mean_of_their_tokens():
    """Against the plain definition, with the tokenizer as the package configures it."""
    safetensors = pytest.importorskip("safetensors.numpy")
    tokenizers = pytest.importorskip("tokenizers")
    folder = importlib.util.find_spec("wordllama").submodule_search_locations[0]
    table = safetensors.load_file(f"{folder}/weights/l2_supercat_256.safetensors")["embedding.weight"].astype(np.float64)
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizers/l2_supercat_tokenizer_config.json")
    texts = [TOWERS, BREAD, "x", "def f(a_b):\n    return  3.14 # ünïcödé"]

    vectors = await WordllamaEmbedder().embed(texts, "passage")

    for text, vector in zip(texts, vectors, strict=True):
        mean = table[tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-4)


@needs_weights
async def test_the_event_loop_goes_on_while_passages_are_embedded():
    embedder = WordllamaEmbedder()
    await embedder.embed(["warm"], "query")
    ticks = 0
    work = asyncio.create_task(embedder.embed([(TOWERS + BREAD) * 40] * 300, "passage"))
    while not work.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert len(await work) == 300
    assert ticks > 20


@needs_weights
async def test_the_built_in_embedder_is_fast_enough():
    """450 passages of 800 tokens for a second of CPU, less a wide margin for a machine that does other things."""
    embedder = WordllamaEmbedder()
    passage = " ".join(f"{TOWERS} {BREAD} {number}" for number in range(24))  # 800 tokens
    await embedder.embed([passage], "passage")
    began = time.process_time()
    await embedder.embed([f"{number} {passage}" for number in range(300)], "passage")
    assert 300 / (time.process_time() - began) > 225


@needs_weights
async def test_the_weights_are_loaded_once_by_calls_that_come_together():
    embedder = WordllamaEmbedder()
    threads = threading.active_count()
    first, second = await asyncio.gather(embedder.embed([TOWERS], "query"), embedder.embed([TOWERS], "query"))
    assert first.tobytes() == second.tobytes()
    assert threading.active_count() <= threads + 2


@pytest.mark.parametrize("package", ["wordllama", "tokenizers", "safetensors.numpy"])
async def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "wordllama":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    elif importlib.util.find_spec("wordllama") is None:
        pytest.skip("the built-in embedder is not installed")
    with pytest.raises(EmbeddingFailed, match=r"not installed.*make setup") as failed:
        await WordllamaEmbedder().embed(["x"], "query")
    assert not failed.value.retryable


# ---- the endpoint ------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(answer):
    """A server that answers `/v1/embeddings` by `answer(body, request)`; gives its base URL."""

    async def respond(request):
        answered = answer(msgspec.json.decode(await request.read()), request)
        return await answered if asyncio.iscoroutine(answered) else answered

    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_post("/v1/embeddings", respond)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def embedding(answer, limits=NO_RETRIES, model="m"):
    async with serving(answer) as base_url:
        embedder = EmbeddingsEndpoint(base_url, model, api_key=KEY, limits=limits)
        try:
            yield embedder
        finally:
            await embedder.close()


def items(*vectors):
    return web.json_response({"data": [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]})


async def failure_of(answer, limits=NO_RETRIES, texts=("a", "b")):
    async with embedding(answer, limits) as embedder:
        with pytest.raises(EmbeddingFailed) as failed:
            await embedder.embed(texts, "passage")
    assert KEY not in failed.value.message
    return failed.value


async def test_floats_and_base64_in_any_order():
    def answer(body, request):
        packed = base64.b64encode(struct.pack("<2f", 3, 4)).decode()
        return web.json_response({"data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": packed}]})

    async with embedding(answer) as embedder:
        np.testing.assert_allclose(await embedder.embed(["a", "b"], "passage"), [[0.6, 0.8], [0, 1]], atol=1e-6)


async def test_what_is_sent():
    seen = []

    def answer(body, request):
        seen.append((body, request.headers["Authorization"]))
        return items(*[[1.0, float(len(text))] for text in body["input"]])

    texts = ["x" * length for length in range(1, 71)]
    async with embedding(answer) as embedder:
        vectors = await embedder.embed(texts, "passage")
    np.testing.assert_allclose(vectors[:, 1] / vectors[:, 0], range(1, 71), rtol=1e-4)
    assert sorted(len(body["input"]) for body, _ in seen) == [6, 32, 32]
    assert {(body["model"], body["encoding_format"], key) for body, key in seen} == {("m", "base64", f"Bearer {KEY}")}


async def test_a_request_is_bounded_in_size_and_a_text_in_length():
    sizes = []

    def answer(body, request):
        sizes.append([len(text) for text in body["input"]])
        return items(*[[1.0]] * len(body["input"]))

    async with embedding(answer) as embedder:
        await embedder.embed(["x" * 100_000] * 6, "passage")
    assert sum(map(len, sizes)) == 6
    assert max(map(sum, sizes)) <= 256 * 1024
    assert {size for group in sizes for size in group} == {64 * 1024}


async def test_few_requests_at_a_time():
    open_now, most = 0, 0

    async def answer(body, request):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.02)
        open_now -= 1
        return items(*[[1.0]] * len(body["input"]))

    async with embedding(answer) as embedder:
        await embedder.embed(["x"] * 500, "passage")
    assert 1 < most <= 4


async def test_it_tries_again_when_that_may_help():
    attempts = []

    def answer(body, request):
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            return web.json_response({"error": {"message": "Slow down"}}, status=429, headers={"Retry-After": "0.2"})
        return items([1.0, 0.0]) if len(attempts) == 3 else web.Response(status=503, text="busy")

    async with embedding(answer, FAST_RETRIES) as embedder:
        assert (await embedder.embed(["a"], "query")).tolist() == [[1.0, 0.0]]
    assert attempts[1] - attempts[0] >= 0.2


@pytest.mark.parametrize(
    ("answer", "words", "is_retryable"),
    [
        (web.json_response({"error": {"message": f"no such key {KEY}"}}, status=401), "refused the key", False),
        (web.json_response({"error": {"message": "input is too long"}}, status=400), "input is too long", False),
        (web.Response(status=500, text="oops"), "HTTP 500", True),
        (web.json_response({"error": "later"}, status=429), "limits the rate", True),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "redirects", False),
        (web.Response(text="<html>"), "holds no vectors", False),
        (web.json_response({"data": []}), "0 vectors for 2 texts", False),
        (web.json_response({"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}), "holds no vectors", False),
        (web.json_response({"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}), "lengths differ", False),
        (web.json_response({"data": [{"index": 0, "embedding": "!"}, {"index": 1, "embedding": "!"}]}), "holds no vectors", False),
        (web.json_response({"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}), "lengths differ or are 0", False),
        (web.json_response({"data": [{"index": 0, "embedding": "AADAfw=="}, {"index": 1, "embedding": "AADAfw=="}]}), "finite", False),
        (web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), "compressed", False),
    ],
)
async def test_bad_answers_are_told_apart(answer, words, is_retryable):
    failed = await failure_of(lambda body, request: answer)
    assert words in failed.message
    assert failed.retryable is is_retryable


async def test_an_answer_that_does_not_come():
    failed = await failure_of(lambda body, request: asyncio.sleep(30), SHORT)
    assert "0.3 seconds" in failed.message
    assert failed.retryable


async def test_an_answer_that_never_ends():
    async def answer(body, request):
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 1024 * 1024)
        return response

    assert "too long" in (await failure_of(answer)).message


async def test_nobody_is_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        embedder = EmbeddingsEndpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "m", api_key=KEY, limits=NO_RETRIES)
        with pytest.raises(EmbeddingFailed, match="cannot be reached") as failed:
            await embedder.check()
        await embedder.close()
    assert failed.value.retryable


async def test_vectors_of_another_dimension_are_refused():
    lengths = iter([3, 4])

    async with embedding(lambda body, request: items([1.0] * next(lengths))) as embedder:
        await embedder.embed(["a"], "query")
        with pytest.raises(EmbeddingFailed, match="4 dimensions now, and gave 3") as failed:
            await embedder.embed(["a"], "query")
    assert not failed.value.retryable


async def test_one_failed_request_fails_all_and_leaves_nothing_behind():
    async def answer(body, request):
        if body["input"][0] == "0":
            return web.json_response({"error": "no"}, status=400)
        return await asyncio.sleep(30)

    before = asyncio.all_tasks()
    async with embedding(answer) as embedder:
        async with asyncio.timeout(5):
            with pytest.raises(EmbeddingFailed, match="did not accept"):
                await embedder.embed([str(number) for number in range(100)], "passage")
        for _ in range(50):
            await asyncio.sleep(0)
        mine = [task for task in asyncio.all_tasks() - before if "embeddings/" in str(task.get_coro().cr_code.co_filename)]
        assert mine == []


# ---- fastembed, and the choice -----------------------------------------------------------------------------------------------------


async def test_fastembed_is_named_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fastembed", None)
    with pytest.raises(EmbeddingFailed, match="pip install fastembed") as failed:
        await FastembedEmbedder("m", str(tmp_path)).embed(["x"], "query")
    assert not failed.value.retryable


@pytest.mark.parametrize(("model", "is_retryable"), [("unknown", False), ("offline", True)])
async def test_a_model_that_fastembed_cannot_load(fastembed, tmp_path, model, is_retryable):
    with pytest.raises(EmbeddingFailed, match=f"cannot load the model '{model}'") as failed:
        await FastembedEmbedder(model, str(tmp_path)).check()
    assert failed.value.retryable is is_retryable


@pytest.mark.parametrize(
    ("values", "embedder_id"),
    [
        ({}, "wordllama-256"),
        ({"embedder": "openai", "embeddings_base_url": "http://127.0.0.1:1/v1", "embeddings_model": "e"}, "openai:e"),
        ({"embedder": "fastembed", "embeddings_model": "e"}, "fastembed:e"),
    ],
)
async def test_the_setting_chooses(tmp_path, values, embedder_id):
    embedder = build_embedder(Settings(data_dir=tmp_path, **values))
    assert embedder.id == embedder_id
    await embedder.close()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"embedder": "word2vec"}, "must be builtin, openai or fastembed"),
        ({"embedder": "openai", "embeddings_model": "e"}, "embeddings_base_url"),
        ({"embedder": "openai", "embeddings_base_url": "http://127.0.0.1:1/v1"}, "embeddings_model"),
        ({"embedder": "openai", "embeddings_base_url": "ftp://x", "embeddings_model": "e"}, "embeddings_base_url"),
        ({"embedder": "fastembed"}, "embeddings_model"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_start(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        build_embedder(Settings(data_dir=tmp_path, **values))


async def test_check_tells_of_the_embedder_and_the_re_ranker(settings, endpoint):
    chosen = Settings(
        data_dir=settings.data_dir,
        openai_base_url=endpoint.base_url,
        embedder="openai",
        embeddings_base_url=endpoint.base_url,
        embeddings_model="e",
        rerank_url=f"{endpoint.base_url}/rerank",
    )
    parts = await checked_parts(chosen)
    assert parts["embedder"] == f"openai:e, 64 dimensions, at {endpoint.base_url}"
    assert parts["re-ranker"] == f"re-ranker at {endpoint.base_url}/rerank"
