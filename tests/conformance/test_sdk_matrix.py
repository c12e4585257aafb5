"""The official Python SDK in processes of its own against a server process: first and newest major version, sync and async client."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.sdk_server import API_KEY, sdk_server

ROOT = Path(__file__).parents[2]
# `make test` installs it there: beside, not among, the packages of the environment, which hold the newest version.
OPENAI_1X = Path(sys.prefix) / "openai-1x"
MATRIX_TIMEOUT_SECONDS = 120.0

pytestmark = pytest.mark.timeout(MATRIX_TIMEOUT_SECONDS + 60)


@pytest.mark.parametrize("client", ["sync", "async"])
@pytest.mark.parametrize("version", ["newest", "1.x"])
def test_every_scenario_of_the_sdk_passes(tmp_path, version, client):
    expected = importlib.metadata.version("openai")
    paths = [ROOT]
    if version == "1.x":
        if not OPENAI_1X.is_dir():
            pytest.skip(f"openai 1.x is not in {OPENAI_1X}: make test installs it")
        expected = next(OPENAI_1X.glob("openai-1.*.dist-info")).name.removeprefix("openai-").removesuffix(".dist-info")
        paths.insert(0, OPENAI_1X)
    with sdk_server(tmp_path / "data") as base_url:
        played = _play(client, paths, base_url)
    assert played.returncode == 0, played.stdout + played.stderr
    lines = played.stdout.splitlines()
    assert lines[0] == f"openai {expected}, {client} client"
    passed = [line for line in lines if line.startswith("ok ")]
    assert lines[-1] == f"{len(passed)} of {len(passed)} scenarios passed"
    assert passed


def _play(client, paths, base_url):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    environment = {
        **inherited,
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": API_KEY,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.conformance.sdk_scenarios", client]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=MATRIX_TIMEOUT_SECONDS)
