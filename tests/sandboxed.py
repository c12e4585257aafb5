"""Which sandboxes this machine has, for tests that need one."""

import asyncio
import functools
import tempfile
from pathlib import Path

from mini_assistant.app import build_sandbox
from mini_assistant.errors import SandboxUnavailable
from mini_assistant.settings import Settings


@functools.cache
def why_not(name: str) -> str:
    """Why a backend cannot be used here; empty when it can. It is tried once in each process of the tests."""

    async def checked(data_dir: Path) -> str:
        sandbox = build_sandbox(Settings(data_dir=data_dir, sandbox=name))
        try:
            await sandbox.check()
        except SandboxUnavailable as exc:
            return exc.message
        finally:
            await sandbox.close()
        return ""

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(checked(Path(folder)))
