"""Fixtures of the attacks: targets, and the sandboxes of this machine with limits that floods soon meet."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.base import Sandbox
from mini_assistant.sandboxes.process import ProcessSandbox
from mini_assistant.sandboxes.unsafe import UnsafeSandbox
from mini_assistant.sandboxes.wasm import WasmSandbox
from mini_assistant.settings import Settings
from tests.attacks.attempts import wait_until_ended
from tests.attacks.targets import Targets, adopting_orphans, descendants, reap

MEGABYTE = 1024 * 1024
ISOLATED: dict[str, Callable[[Settings], Sandbox]] = {"process": ProcessSandbox, "wasm": WasmSandbox}


@pytest.fixture(autouse=True)
def orphans() -> Iterator[None]:
    """Nothing that a test starts can hide by losing its parent."""
    with adopting_orphans():
        yield


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[Targets]:
    """Fresh targets, which no other test has touched."""
    with Targets(tmp_path) as targets:
        yield targets


@pytest.fixture
def call_seconds() -> float:
    """How long code may run; modules whose code never ends have less."""
    return 10.0


@pytest.fixture
def settings(tmp_path: Path, call_seconds: float) -> Settings:
    """Limits that a flood meets within a second or two."""
    return dataclasses.replace(
        Settings(data_dir=tmp_path / "data"),
        sandbox_call_timeout_seconds=call_seconds,
        sandbox_memory_bytes_max=256 * MEGABYTE,
        sandbox_disk_bytes_max=8 * MEGABYTE,
        sandbox_files_max=200,
        sandbox_processes_max=32,
        sandbox_log_bytes_max=64 * 1024,
        sandbox_image_bytes_max=MEGABYTE,
        sandbox_images_max=5,
    )


@pytest.fixture(scope="session")
def why_unavailable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of each isolated backend that does not run here, the reason."""
    reasons: dict[str, str] = {}

    async def check(name: str) -> None:
        sandbox = ISOLATED[name](Settings(data_dir=tmp_path_factory.mktemp("check")))
        try:
            await sandbox.check()
        except SandboxUnavailable as exc:
            reasons[name] = exc.message
        finally:
            await sandbox.close()

    for name in ISOLATED:
        asyncio.run(check(name))
    return reasons


async def running(name: str, settings: Settings, why_unavailable: dict[str, str]) -> AsyncIterator[Sandbox]:
    """A backend by its name. Nothing that it has started may be there after it was closed."""
    if name in why_unavailable:
        pytest.skip(f"{name}: {why_unavailable[name]}")
    before = descendants()
    sandbox = ISOLATED[name](settings)
    yield sandbox
    await sandbox.close()
    left = await wait_until_ended(descendants() - before)
    reap(left)
    assert left == set(), "processes are left after the sandbox was closed"


# The default of a Linux machine is tried each time, the others with the tests that take minutes.
_HEAVY = pytest.mark.heavy
_BACKENDS = ["process", pytest.param("wasm", marks=_HEAVY)]


@pytest.fixture(params=_BACKENDS)
async def sandbox(request: pytest.FixtureRequest, settings: Settings, why_unavailable: dict[str, str]) -> AsyncIterator[Sandbox]:
    """Every backend that has to hold an attack."""
    async for sandbox in running(request.param, settings, why_unavailable):
        yield sandbox


@pytest.fixture
async def unsafe(settings: Settings) -> AsyncIterator[Sandbox]:
    """No isolation: where an attempt succeeds."""
    before = descendants()
    sandbox = UnsafeSandbox(settings)
    yield sandbox
    await sandbox.close()
    reap(descendants() - before)


@pytest.fixture(params=[*_BACKENDS, pytest.param("unsafe", marks=_HEAVY)])
async def any_sandbox(request: pytest.FixtureRequest, settings: Settings, why_unavailable: dict[str, str]) -> AsyncIterator[Sandbox]:
    """Every backend, for attempts on what the host does with files and answers: without isolation that has to hold by itself."""
    if request.param == "unsafe":
        sandbox = UnsafeSandbox(settings)
        yield sandbox
        await sandbox.close()
    else:
        async for sandbox in running(request.param, settings, why_unavailable):
            yield sandbox
