"""What a program written against the official SDK does, played by the SDK itself in a process of its own.

`python -m tests.conformance.sdk_scenarios sync|async` plays every scenario on the server at `OPENAI_BASE_URL` and fails when one does. The
same source runs on the first and the newest major version of the package that still matter, with the sync and with the async client.
Nothing of the server is imported.
"""
