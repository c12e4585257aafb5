"""Play all scenarios, one after another, and say how each went."""

import argparse
import asyncio
import sys
import time
import traceback

import openai

from tests.conformance.sdk_scenarios import codes, files, resources, runs, searches, streams, tools
from tests.conformance.sdk_scenarios.client import Sdk

SCENARIOS = [scenario for module in (resources, files, runs, tools, streams, searches, codes) for scenario in module.SCENARIOS]
SCENARIO_TIMEOUT_SECONDS = 30.0


async def play(*, is_async: bool) -> int:
    """The number of scenarios that failed."""
    failures = 0
    sdk = Sdk(is_async=is_async)
    for scenario in SCENARIOS:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(SCENARIO_TIMEOUT_SECONDS):
                await scenario(sdk)
        except Exception:
            failures += 1
            print(f"FAILED {scenario.__name__}")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"ok {scenario.__name__} ({time.monotonic() - begun:.2f} s)", flush=True)
    await sdk.close()
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.sdk_scenarios")
    parser.add_argument("client", choices=["sync", "async"])
    client = parser.parse_args().client
    print(f"openai {openai.__version__}, {client} client", flush=True)
    failures = asyncio.run(play(is_async=client == "async"))
    print(f"{len(SCENARIOS) - failures} of {len(SCENARIOS)} scenarios passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
