"""Finds out what an endpoint really does with a model, by asking it: `mini-assistant models probe NAME`.

The requests are sent as they are written here, not through the client of the server, which leaves out what a model cannot do. They go
one after the other, in a fixed order: what the first ones show (the name of the limit, whether it streams) shapes the others.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from mini_assistant.errors import ConfigError
from mini_assistant.models.base import Capabilities
from mini_assistant.models.endpoint_session import EndpointSession
from mini_assistant.models.probe_checks import (
    CALL_CHECKS,
    CHOICE_CHECKS,
    EFFORT_CHECK,
    FORM_CHECKS,
    HELLO,
    LIMIT_CHECKS,
    TEMPERATURE_CHECK,
    TOOLS_CHECK,
    USAGE_CHECK,
    Check,
    judge_limit,
    role_check,
)
from mini_assistant.models.probe_endpoint import Answer, Endpoint, Failure
from mini_assistant.models.probe_report import Finding, Outcome, ProbeReport, changes_of, found_capabilities, model_toml
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.settings import ModelSettings

_NAME_CHARACTERS_MAX = 256
_ANSWER_TOKENS_MAX = 300
_ANSWER_TOKENS_MAX_WITH_REASONING = 3_000
REQUESTS_MAX = 18
"""As many requests a probe sends to a model when none has to be repeated."""


class Probe:
    """One model at one endpoint. tell: told of the progress, a line at a time."""

    def __init__(self, endpoint: Endpoint, tell: Callable[[str], None]) -> None:
        self._endpoint = endpoint
        self._tell = tell
        self.findings: dict[str, Finding] = {}

    async def run(self) -> None:
        """Do all tests. Raises ModelError when the endpoint does not answer at all."""
        await self._check_answers()
        await self._check_limits()
        if await self._try(TEMPERATURE_CHECK) == "yes":
            self._endpoint.common["temperature"] = 0
        await self._check_usage()
        await self._try(EFFORT_CHECK)
        outcomes = [await self._try(role_check(role)) for role in ("system", "developer")]
        if "yes" not in outcomes:
            await self._try(role_check("user"))
        calls_tools = "yes" in [await self._try(check) for check in (TOOLS_CHECK, *CHOICE_CHECKS)]
        for check in CALL_CHECKS:
            if calls_tools:
                await self._try(check)
            else:
                self._add(Finding(check.name, "unknown", "not tried: it calls no tools"))
        for check in FORM_CHECKS:
            await self._try(check)
        self._add(_reasoning_finding(self._endpoint.reasoning))
        await self._look_at_list()

    async def _check_answers(self) -> None:
        self._tell("probe: answers")
        reply = await self._endpoint.ask(HELLO, {})
        streaming = Finding("streaming", "yes")
        if isinstance(reply, Failure):
            streaming = Finding("streaming", reply.outcome, reply.reason)
            self._endpoint.common["stream"] = False
            first, reply = reply, await self._endpoint.ask(HELLO, {})
            if isinstance(reply, Failure):
                raise first.error
        elif not reply.is_streamed:
            streaming = Finding("streaming", "ignored", "the answer came as one JSON object")
        self._note_tags(reply)
        self._add(Finding("answers", "yes", "" if reply.text else "with an empty text"))
        self._add(streaming)

    async def _check_limits(self) -> None:
        outcomes = {check.name: await self._try(check) for check in LIMIT_CHECKS}
        usable = [name for wanted in ("yes", "unknown", "ignored") for name, outcome in outcomes.items() if outcome == wanted]
        if usable:
            tokens = _ANSWER_TOKENS_MAX_WITH_REASONING if self._endpoint.reasoning else _ANSWER_TOKENS_MAX
            self._endpoint.common[usable[0]] = tokens

    async def _check_usage(self) -> None:
        if not self._endpoint.common["stream"]:
            self._add(Finding("stream_usage", "unknown", "not tried: it does not stream"))
        elif await self._try(USAGE_CHECK) == "yes":
            self._endpoint.common |= USAGE_CHECK.fields

    async def _try(self, check: Check) -> Outcome:
        self._tell(f"probe: {check.name}")
        reply = await self._endpoint.ask(check.messages, check.fields)
        if isinstance(reply, Failure):
            outcome, detail = reply.outcome, reply.reason
        else:
            self._note_tags(reply)
            outcome, detail = check.judge(reply)
            if outcome == "ignored" and reply.is_cut_off and check.judge is not judge_limit:
                outcome, detail = "unknown", "the answer was cut off before it could tell"
        self._add(Finding(check.name, outcome, detail))
        return outcome

    def _note_tags(self, answer: Answer) -> None:
        opening, closing = answer.text.find("<think>"), answer.text.find("</think>")
        if opening >= 0 and not answer.text[:opening].strip():
            self._endpoint.reasoning.add("tags")
        elif closing >= 0 and opening < 0:
            self._endpoint.reasoning.add("opened")

    def _add(self, finding: Finding) -> None:
        self.findings[finding.name] = finding

    async def _look_at_list(self) -> None:
        self._tell("probe: context_window")
        entry = _listed_or_none(await self._endpoint.get("models"), self._endpoint.common["model"])
        found = _first_count(entry, ("max_model_len", "n_ctx", "context_length", "context_window", "loaded_context_length"))
        if found is None and _first_count(entry, ("n_ctx_train",)) is not None:
            # llama.cpp lists what the model was trained with; what the server was started with stands elsewhere.
            found = _first_count(_decoded(await self._endpoint.get("../props")), ("n_ctx",))
            found = found or _first_count(entry, ("n_ctx_train",))
        if found is None:
            studio = _listed_or_none(await self._endpoint.get("../api/v0/models"), self._endpoint.common["model"])
            found = _first_count(studio, ("loaded_context_length", "max_context_length"))
        if found is None:
            self._add(Finding("context_window", "unknown", "the endpoint does not tell it"))
        else:
            self._add(Finding("context_window", "yes", f"its {found[0]}", value=found[1]))
        longest = _first_count(entry, ("max_completion_tokens",))
        if longest is not None:
            self._add(Finding("longest_answer", "yes", f"its {longest[0]}", value=longest[1]))


def _reasoning_finding(seen: set[str]) -> Finding:
    if "apart" in seen:
        return Finding("reasoning_text", "yes", "in a field of its own")
    if "tags" in seen:
        return Finding("reasoning_text", "yes", "as <think> in the answer")
    if "opened" in seen:
        return Finding("reasoning_text", "yes", "in the answer, up to </think>", value="opened")
    return Finding("reasoning_text", "no", "it is counted, not shown" if "counted" in seen else "none was seen")


class _Listed(msgspec.Struct):
    data: list[dict[str, Any]]


def _listed_or_none(body: bytes | None, model: str) -> dict[str, Any] | None:
    """The entry of a model in the list of an endpoint; the only one of a server that has one model under whatever name."""
    try:
        entries = msgspec.json.decode(body or b"", type=_Listed).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    named = [entry for entry in entries if entry.get("id") in (model, f"{model}:latest")]
    return named[0] if named else entries[0] if len(entries) == 1 else None


def _decoded(body: bytes | None) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(body or b"", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# Below the entry itself: of llama.cpp, of OpenRouter, and of the properties of llama.cpp.
_INNER = ("meta", "top_provider", "default_generation_settings")


def _first_count(entry: dict[str, Any] | None, names: tuple[str, ...]) -> tuple[str, int] | None:
    """The first field that holds a plausible number of tokens."""
    if entry is None:
        return None
    places = [entry, *(entry[name] for name in _INNER if isinstance(entry.get(name), dict))]
    for name in names:
        for place in places:
            value = place.get(name)
            if type(value) is int and 128 <= value <= 1_000_000_000:
                return name, value
    return None


async def probe(
    session: EndpointSession, limits: ProviderLimits, name: str, model: ModelSettings, tell: Callable[[str], None]
) -> ProbeReport:
    """Ask an endpoint what it does with a model, with at most `REQUESTS_MAX` requests and a few repeats.

    name: of the model in this server. model: where it is served, with `upstream_name`, and what is known of it so far.
    Raises ModelError when the endpoint does not answer at all, ConfigError when there can be no model of this name.
    """
    upstream_name = model.upstream_name or name
    if not upstream_name.isprintable() or len(upstream_name) > _NAME_CHARACTERS_MAX:
        raise ConfigError(f"The name of a model has at most {_NAME_CHARACTERS_MAX} characters, all of them printable.")
    endpoint = Endpoint(session, limits, upstream_name)
    asking = Probe(endpoint, tell)
    await asking.run()
    capabilities = found_capabilities(asking.findings, model)
    assert isinstance(capabilities, ModelSettings)
    return ProbeReport(
        model=name,
        provider=model.provider,
        upstream_name=upstream_name,
        address=session.public_address,
        findings=tuple(asking.findings.values()),
        changes=changes_of(capabilities),
        toml=model_toml(name, capabilities),
        requests=endpoint.requests,
        tokens=endpoint.tokens,
    )


def known_report(name: str, provider: str, capabilities: Capabilities) -> ProbeReport:
    """The report of a model that is not asked, because what it can do is known: the built-in one."""
    findings: list[Finding] = []
    for known in msgspec.structs.fields(Capabilities):
        value: object = getattr(capabilities, known.name)
        if isinstance(value, bool):
            findings.append(Finding(known.name, "yes" if value else "no"))
        elif isinstance(value, int):
            findings.append(Finding(known.name, "yes", value=value))
        elif value is not None:
            findings.append(Finding(known.name, "yes", str(value)))
    return ProbeReport(
        model=name,
        provider=provider,
        upstream_name=name,
        address="",
        findings=tuple(findings),
        changes=changes_of(capabilities),
        toml=model_toml(name, ModelSettings(provider=provider)),
    )
