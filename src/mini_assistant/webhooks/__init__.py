"""Webhooks: signed calls that tell a client's server what has happened, an extension."""
