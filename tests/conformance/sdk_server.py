"""The server process that the tests with the official SDKs talk to: scripted answers, a key, and a heart that beats often."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.server_process import ServerProcess, scripted_model_process

API_KEY = "a-key-of-the-sdk-tests"
_SCRIPT = Path(__file__).parent / "sdk_scenarios" / "script.json"


@contextlib.contextmanager
def sdk_server(data_dir: Path) -> Iterator[str]:
    """The base URL of a new server process for the time of a test; the server must end well too."""
    with scripted_model_process(_SCRIPT) as model_base_url:
        server = ServerProcess(
            data_dir,
            {
                "OPENAI_BASE_URL": model_base_url,
                "MINI_ASSISTANT_API_KEYS": API_KEY,
                "MINI_ASSISTANT_MODEL_RETRIES_MAX": "0",
                # What isolates code makes no difference to what SDKs see, and this one is everywhere.
                "MINI_ASSISTANT_SANDBOX": "unsafe",
                "MINI_ASSISTANT_STREAM_PING_INTERVAL_SECONDS": "0.1",
            },
        )
        try:
            server.start()
            yield f"{server.address}/v1"
        finally:
            status = server.stop()
    assert status == 0
