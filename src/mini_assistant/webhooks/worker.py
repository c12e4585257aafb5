"""Calls webhooks: claims events that are due, sends them, and tries again what failed.

One deliverer a process that executes runs. The process itself tells it of events (`Services.webhooks_due`), others are found by its sweep.
An event is sent at least once, with the same id each time; the order is not kept.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter

import aiohttp

from mini_assistant.errors import StoreUnavailable
from mini_assistant.metrics import WEBHOOK_CALLS
from mini_assistant.outbound import OutboundRefused, checked_connector
from mini_assistant.services import Services
from mini_assistant.webhooks import deliveries
from mini_assistant.webhooks.deliveries import Delivery, DueDeliveries
from mini_assistant.webhooks.signature import signed_headers

log = logging.getLogger("mini_assistant.webhooks")

# A receiver that is slow has this part of the calls that a process makes at a time, one that has just failed a single one.
_SHARE_OF_WEBHOOK = 5
_HEADERS = {"Accept-Encoding": "identity", "Content-Type": "application/json", "User-Agent": "mini-assistant"}
_ANSWER_BYTES_MAX = 8 * 1024
_GONE = "The answer has the status 410: the receiver wants no more events."


class _CallFailed(Exception):
    """A call that did not end well. `message` is for the owner of the webhook."""

    def __init__(self, message: str, *, is_gone: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.is_gone = is_gone


class Deliverer:
    """The calls of webhooks that this process makes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._hint = services.webhooks_due
        self._calls_max = services.settings.webhook_concurrency_max
        self._share = max(1, self._calls_max // _SHARE_OF_WEBHOOK)
        self._due = DueDeliveries(left_alone_max=self._calls_max)
        self._calls: dict[asyncio.Task[None], Delivery] = {}
        # Webhooks whose last call has failed.
        self._failing: set[str] = set()
        # By the event loop's clock.
        self._forget_at = 0.0

    async def run(self) -> None:
        """Work until cancelled; then break off the calls and leave their events to others."""
        async with self._session() as session:
            try:
                while True:
                    self._hint.clear()
                    try:
                        await self._send_what_is_due(session)
                        await self._forget_now_and_then()
                    except StoreUnavailable as exc:
                        log.error("%s Webhooks will be called later.", exc.message)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._services.settings.sweep_interval_seconds):
                            await self._hint.wait()
            finally:
                await self._break_off()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=checked_connector(private_addresses=self._services.settings.private_addresses),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_ANSWER_BYTES_MAX,
        )

    async def _send_what_is_due(self, session: aiohttp.ClientSession) -> None:
        """Begin as many calls as there is place for. Webhooks that have their share are passed over, so that they hold up no other."""
        while (free := self._calls_max - len(self._calls)) > 0:
            open_calls = Counter(delivery.webhook_id for delivery in self._calls.values())
            busy = [webhook_id for webhook_id, count in open_calls.items() if count >= self._share_of(webhook_id)]
            due = await self._due.read(self._services, free, busy)
            chosen: list[Delivery] = []
            for delivery in due:
                if open_calls[delivery.webhook_id] < self._share_of(delivery.webhook_id):
                    open_calls[delivery.webhook_id] += 1
                    chosen.append(delivery)
            for delivery in await deliveries.claim(self._services, chosen):
                call = asyncio.create_task(self._deliver(session, delivery))
                self._calls[call] = delivery
                call.add_done_callback(self._end_call)
            if len(due) < free:
                return

    async def _forget_now_and_then(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._forget_at:
            self._forget_at = now + self._services.settings.sweep_interval_seconds
            await deliveries.forget_old_deliveries(self._services)

    def _share_of(self, webhook_id: str) -> int:
        return 1 if webhook_id in self._failing else self._share

    def _end_call(self, call: "asyncio.Task[None]") -> None:
        del self._calls[call]
        self._hint.set()  # there is a place for the next one
        if not call.cancelled() and (failure := call.exception()) is not None:
            log.error("a call of a webhook ended unexpectedly", exc_info=failure)

    async def _deliver(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        """Make a call and write down what became of it."""
        try:
            await self._call(session, delivery)
        except _CallFailed as exc:
            self._failing.add(delivery.webhook_id)
            outcome = await self._saved_failure(delivery, exc)
        else:
            self._failing.discard(delivery.webhook_id)
            outcome = await self._saved(delivery, None, None, "delivered")
        WEBHOOK_CALLS.labels(outcome=outcome).inc()

    async def _call(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        """Raises _CallFailed unless the receiver answers 2xx. What else it answers is not read."""
        services, body = self._services, delivery.body.encode()
        seconds = services.settings.webhook_timeout_seconds
        headers = signed_headers(delivery.secret, delivery.id, services.now(), body)
        try:
            async with asyncio.timeout(seconds), session.post(delivery.url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except OutboundRefused as exc:
            raise _CallFailed(f"It was not called: {exc.message}.") from None
        except TimeoutError:
            raise _CallFailed(f"It took longer than {seconds:g} seconds.") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise _CallFailed("The connection failed.") from None
        if status == 410:
            raise _CallFailed(_GONE, is_gone=True)
        if not 200 <= status < 300:
            note = ", and redirects are not followed" if 300 <= status < 400 else ""
            raise _CallFailed(f"The answer has the status {status}{note}.")

    async def _saved_failure(self, delivery: Delivery, failure: _CallFailed) -> str:
        """Write down that a call has failed; returns its outcome for the metric."""
        services, settings = self._services, self._services.settings
        if failure.is_gone:
            try:
                await deliveries.stop_webhook(services, delivery.webhook_id, failure.message)
            except StoreUnavailable as exc:
                log.error("%s Webhook %s will be called again.", exc.message, delivery.webhook_id)
            log.warning("webhook %s: called no more: %s", delivery.webhook_id, failure.message)
            return "gone"
        if delivery.attempts >= settings.webhook_attempts_max:
            log.warning("webhook %s: event %s given up: %s", delivery.webhook_id, delivery.id, failure.message)
            return await self._saved(delivery, None, failure.message, "given_up")
        doublings = min(delivery.attempts - 1, 60)
        pause_seconds = min(settings.webhook_retry_seconds * 2**doublings, settings.webhook_retry_seconds_max)
        # Events that failed together must not all come back together.
        pause_seconds *= random.uniform(0.75, 1.0)  # noqa: S311
        return await self._saved(delivery, services.clock.now() + pause_seconds, failure.message, "failed")

    async def _saved(self, delivery: Delivery, next_at: float | None, error: str | None, outcome: str) -> str:
        try:
            # What a power cut takes back is sent again: no call waits for the disk.
            await self._services.db.write([deliveries.end_call(delivery, next_at, error)], durable=False)
        except StoreUnavailable as exc:
            log.error("%s Webhook %s will be called again.", exc.message, delivery.webhook_id)
        return outcome

    async def _break_off(self) -> None:
        calls = dict(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        broken_off = [delivery for call, delivery in calls.items() if call.cancelled()]
        now = self._services.clock.now()
        with contextlib.suppress(StoreUnavailable):  # they are due again when their claim runs out
            await self._services.db.write([deliveries.end_call(delivery, now, "The call was broken off.") for delivery in broken_off])
