"""The official Node SDK against a server process: `node --test` runs the files in `node/`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conformance.sdk_server import API_KEY, sdk_server

NODE_TESTS = Path(__file__).parent / "node"
FILES = sorted(path.name for path in NODE_TESTS.glob("*.test.mjs"))
NODE = shutil.which("node")
NODE_TIMEOUT_SECONDS = 120.0

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(NODE_TIMEOUT_SECONDS + 60),
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not (NODE_TESTS / "node_modules" / "openai").is_dir(), reason="the Node SDK is not installed: make test does it"),
]


@pytest.mark.parametrize("file", FILES)
def test_node_sdk(tmp_path, file):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    command = [NODE, "--test", "--test-reporter=spec", file]
    with sdk_server(tmp_path / "data") as base_url:
        environment = {**inherited, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": API_KEY}
        played = subprocess.run(command, env=environment, cwd=NODE_TESTS, capture_output=True, text=True, timeout=NODE_TIMEOUT_SECONDS)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "fail 0" in played.stdout
    assert "pass 0" not in played.stdout
