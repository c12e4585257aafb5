"""Every operation of `/openapi.json` under generated requests, right and wrong ones: no 5xx, and every answer is as described.

Half of the requests go to objects that exist, so that they get past the first look-up. The seconds-long tier always sends the same
requests; the heavy one sends others each time.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import hypothesis
import psutil
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from mini_assistant.app import all_routes
from tests.envelope import checked_error
from tests.server_process import ServerProcess, scripted_model_process

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# Whatever takes nothing cannot be asked wrongly.
OPERATIONS = [
    (route.name, mode)
    for route in all_routes()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if route.name != "getOpenapi" and (mode is GenerationMode.POSITIVE or route.name not in ("getHealth", "getLiveness", "listModels"))
]
generated = pytest.mark.parametrize(("name", "mode"), OPERATIONS, ids=[f"{name}-{mode.value}" for name, mode in OPERATIONS])
TIMEOUT_SECONDS = 20
GROWTH_BYTES_MAX = 300 * 1024 * 1024
FILE_TEXT = "Whales sing long songs under water."
# They use up what they are aimed at.
ENDING = ("delete", "completeUpload", "cancelUpload")


class FuzzedServer:
    """A running server with objects in it, and its document."""

    def __init__(self, address: str, session: requests.Session) -> None:
        self.address = address
        self.session = session
        self.schema = schemathesis.openapi.from_dict(self._call("GET", "/openapi.json"))
        self.ids: dict[str, str] = {}
        self.create_objects()

    def create_objects(self) -> None:
        """Make new objects that generated requests can name; the last ones may have been deleted by some of them."""
        self.ids = {
            "model": "scripted",
            "assistant_id": self._call("POST", "/v1/assistants", {"model": "m", "instructions": "Be brief."})["id"],
        }
        self.ids["thread_id"] = self._call("POST", "/v1/threads", {"messages": [{"role": "user", "content": "Hello"}]})["id"]
        thread = f"/v1/threads/{self.ids['thread_id']}"
        run = {"assistant_id": self.ids["assistant_id"], "stream": True}
        with self.session.post(f"{self.address}{thread}/runs", json=run, timeout=TIMEOUT_SECONDS) as response:
            assert "thread.run.completed" in response.text
        self.ids["run_id"] = self._call("GET", f"{thread}/runs")["data"][0]["id"]
        self.ids["message_id"] = self._call("GET", f"{thread}/messages")["data"][0]["id"]
        self.ids["step_id"] = self._call("GET", f"{thread}/runs/{self.ids['run_id']}/steps")["data"][0]["id"]
        self.ids["webhook_id"] = self._call("POST", "/v1/webhooks", {"url": "https://hook.invalid/", "events": ["run.failed"]})["id"]
        self._create_files()

    def _create_files(self) -> None:
        """A vector store with a file that came in a batch and has been ingested, and an upload with its part."""
        whole = {"filename": "a.txt", "purpose": "assistants", "bytes": len(FILE_TEXT), "mime_type": "text/plain"}
        self.ids["file_id"] = self._call("POST", "/v1/files", {"purpose": "assistants"}, form_file=("file", FILE_TEXT))["id"]
        self.ids["upload_id"] = self._call("POST", "/v1/uploads", whole)["id"]
        self.ids["part_id"] = self._call("POST", f"/v1/uploads/{self.ids['upload_id']}/parts", {}, form_file=("data", FILE_TEXT))["id"]
        self.ids["vector_store_id"] = self._call("POST", "/v1/vector_stores", {})["id"]
        batches = f"/v1/vector_stores/{self.ids['vector_store_id']}/file_batches"
        batch = self._call("POST", batches, {"file_ids": [self.ids["file_id"]]})
        self.ids["batch_id"] = batch["id"]
        give_up_at = time.monotonic() + TIMEOUT_SECONDS
        while batch["status"] == "in_progress" and time.monotonic() < give_up_at:
            time.sleep(0.02)
            batch = self._call("GET", f"{batches}/{batch['id']}")
        assert batch["file_counts"]["completed"] == 1

    def _call(self, method: str, path: str, body: Any = None, form_file: tuple[str, str] | None = None) -> Any:
        """form_file: field and text of the file, when the request is a form."""
        sent = {"json": body} if form_file is None else {"data": body, "files": {form_file[0]: ("a.txt", form_file[1])}}
        response = self.session.request(method, f"{self.address}{path}", timeout=TIMEOUT_SECONDS, **sent)
        assert response.status_code == 200, response.text
        return response.json()

    def aim(self, case: schemathesis.Case) -> None:
        """Make a generated request name objects that exist."""
        for name in case.path_parameters or {}:
            case.path_parameters[name] = self.ids[name]
        if isinstance(case.body, dict):
            self._aim_members(case.body)
        if "Range" in (case.headers or {}):  # no generated text is one
            case.headers["Range"] = f"bytes={2 * len(str(case.headers['Range']))}-"

    def _aim_members(self, value: Any) -> None:
        """Put ids of objects that exist where they are wanted, at any depth; a list of ids becomes one of one id."""
        if isinstance(value, list):
            for item in value:
                self._aim_members(item)
        elif isinstance(value, dict):
            for name, member in value.items():
                if name in self.ids:
                    value[name] = self.ids[name]
                elif name.removesuffix("s") in self.ids and isinstance(member, list):
                    value[name] = [self.ids[name.removesuffix("s")]] * min(1, len(member))
                else:
                    self._aim_members(member)

    def is_served(self) -> bool:
        return self._call("GET", "/health") == {"status": "ok"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedServer]:
    with scripted_model_process() as base_url, requests.Session() as session:
        session.trust_env = False
        environment = {"OPENAI_BASE_URL": base_url, "MINI_ASSISTANT_WEBHOOKS_PER_PROJECT_MAX": "1000000"}
        process = ServerProcess(tmp_path_factory.mktemp("data"), environment)
        process.start()
        try:
            server = FuzzedServer(process.address, session)
            before_bytes = psutil.Process(process.pid).memory_info().rss
            yield server
            assert psutil.Process(process.pid).memory_info().rss - before_bytes < GROWTH_BYTES_MAX
            assert process.stop() == 0
        finally:
            with contextlib.suppress(OSError):
                process.kill()


def fuzz(server: FuzzedServer, name: str, mode: GenerationMode, settings: hypothesis.settings) -> None:
    """Send generated requests to an operation and check the answers."""
    operation = server.schema.find_operation_by_id(name)
    if name.startswith(ENDING):
        server.create_objects()

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), is_aimed=st.booleans())
    @settings
    def check(case: schemathesis.Case, is_aimed: bool) -> None:
        if is_aimed:
            server.aim(case)
        response = case.call(base_url=f"{server.address}/v1", session=server.session, timeout=TIMEOUT_SECONDS)
        if response.status_code in (404, 405) and response.json()["error"]["message"].startswith(("Invalid URL", "Not allowed to")):
            hypothesis.reject()  # a generated id that bends the path: another operation, or none
        is_stream = response.headers.get("content-type") == ["text/event-stream; charset=utf-8"]
        # What a stream's single events look like cannot be said in OpenAPI 3.1.
        case.validate_response(response, checks=CHECKS, excluded_checks=[response_schema_conformance] if is_stream else [])
        if name == "downloadFile" and response.status_code in (200, 206, 304):
            check_download(response)
        elif response.status_code != 200:
            checked_error(response.content)

    try:
        check()
    finally:
        assert server.is_served()
    if name.startswith(ENDING):
        server.create_objects()


def check_download(response: schemathesis.Response) -> None:
    """It is the file, or the part of it that the answer says."""
    text = FILE_TEXT.encode()
    if response.status_code == 304:
        assert (response.content, response.headers.get("content-type")) == (b"", None)
        return
    start, end = 0, len(text)
    if response.status_code == 206:
        part = re.fullmatch(rf"bytes ([0-9]+)-([0-9]+)/{len(text)}", response.headers["content-range"][0])
        assert part is not None
        start, end = int(part[1]), int(part[2]) + 1
    assert response.content == text[start:end]


def settings_of(max_examples: int, *, derandomize: bool) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=max_examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )


@generated
def test_generated_requests(name: str, mode: GenerationMode, server: FuzzedServer) -> None:
    fuzz(server, name, mode, settings_of(10, derandomize=True))


@pytest.mark.heavy
@generated
def test_many_generated_requests(name: str, mode: GenerationMode, server: FuzzedServer) -> None:
    fuzz(server, name, mode, settings_of(300, derandomize=False))


def test_the_fuzzer_would_notice(server: FuzzedServer) -> None:
    """A server that answers with less than it describes does not pass."""
    document = json.loads(json.dumps(server.schema.raw_schema))
    case = schemathesis.openapi.from_dict(document).find_operation_by_id("getHealth").Case()
    response = case.call(base_url=f"{server.address}/v1", session=server.session)
    case.validate_response(response, checks=CHECKS)

    document["components"]["schemas"]["Health"]["properties"]["status"]["enum"] = ["bad"]
    with pytest.raises(FailureGroup, match="Response violates schema"):
        schemathesis.openapi.from_dict(document).find_operation_by_id("getHealth").Case().validate_response(response, checks=CHECKS)
    response.status_code = 500
    with pytest.raises(FailureGroup, match="Server error"):
        case.validate_response(response, checks=CHECKS)
