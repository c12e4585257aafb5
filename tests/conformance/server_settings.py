"""Settings of the server for one test: `@server_with(run_expiry_seconds=1)` in place of the settings' own values."""

from typing import Any

import pytest


def server_with(**changes: Any) -> pytest.MarkDecorator:
    """The mark that starts the server of a test with these settings."""
    return pytest.mark.parametrize("settings", [changes], indirect=True, ids=["-".join(changes)])
