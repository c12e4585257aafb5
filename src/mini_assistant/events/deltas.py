"""How deltas add up: the rule by which both official SDKs build the final objects. Source: behaviour §4.4."""

from typing import Any

import msgspec


def merged_delta(pieces: list[bytes]) -> bytes:
    """One delta that says what several deltas of the same object said one after another."""
    whole: dict[str, Any] = msgspec.json.decode(pieces[0])
    for piece in pieces[1:]:
        _add(whole["delta"], msgspec.json.decode(piece)["delta"])
    return msgspec.json.encode(whole)


def _add(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for key, value in piece.items():
        known = whole.get(key)
        if known is None or key in ("index", "type"):
            whole[key] = value
        elif isinstance(known, str) and isinstance(value, str):
            whole[key] = known + value
        elif isinstance(known, dict) and isinstance(value, dict):
            _add(known, value)  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(known, list) and isinstance(value, list):
            _add_entries(known, value)  # pyright: ignore[reportUnknownArgumentType]


def _add_entries(whole: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    for piece in pieces:
        known = next((entry for entry in whole if entry["index"] == piece["index"]), None)
        if known is None:
            whole.append(piece)
        else:
            _add(known, piece)
