"""Clients of the public API for a terminal: a conversation, and a folder made searchable."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells know it."""
