"""`GET /organization/usage`: what projects have used, by day. In the manner of the hosted usage API: an object `page`, with `next_page`."""

import datetime
import re
from typing import Annotated, Literal

import msgspec

from mini_assistant.errors import InvalidRequest
from mini_assistant.http.routing import Request, Route
from mini_assistant.projects.usage import BEGINNING, Place, UsageDay, day_of, first_of_days, get_days, roll_up_usage

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAYS_DEFAULT = 30


class UsageQuery(msgspec.Struct, frozen=True):
    """Which days of which project. Dates are days in UTC, as 2026-11-25, both inclusive; without them, the last 30 days.

    project_id: None for all. page: `next_page` of the answer before.
    """

    start_date: str | None = None
    end_date: str | None = None
    project_id: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    page: str | None = None


class UsagePage(msgspec.Struct):
    """Days by date, and then by project; a project has no row for a day of which there is nothing to tell.

    next_page: None when this is the last page.
    """

    data: list[UsageDay]
    has_more: bool = False
    next_page: str | None = None
    object: Literal["page"] = "page"


async def list_usage(request: Request[None, UsageQuery]) -> bytes:
    query, db = request.query, request.services.db
    end = _date("end_date", query.end_date) or datetime.date.fromisoformat(day_of(request.services.now()))
    start = _date("start_date", query.start_date) or first_of_days(end, _DAYS_DEFAULT)
    if start > end:
        raise InvalidRequest("'end_date' must not be before 'start_date'.", param="end_date", code="invalid_value")
    after = _place(query.page) if query.page is not None else BEGINNING
    await roll_up_usage(db)
    days = await get_days(db, start.isoformat(), end.isoformat(), limit=query.limit + 1, project_id=query.project_id, after=after)
    shown = days[: query.limit]
    if len(days) == len(shown):
        return msgspec.json.encode(UsagePage(shown))
    return msgspec.json.encode(UsagePage(shown, has_more=True, next_page=f"{shown[-1].date}~{shown[-1].project_id}"))


def _date(name: str, text: str | None) -> datetime.date | None:
    if text is None:
        return None
    try:
        if _DATE.fullmatch(text):
            return datetime.date.fromisoformat(text)
    except ValueError:
        pass  # such as the 30th of February
    raise InvalidRequest(f"Invalid '{name}': '{text[:100]}'. Expected a date such as 2026-11-25.", param=name, code="invalid_value")


def _place(page: str) -> Place:
    date, mark, project_id = page.partition("~")
    if not mark or not _DATE.fullmatch(date):
        raise InvalidRequest(f"Invalid 'page': '{page[:100]}'. Expected the 'next_page' of an answer.", param="page", code="invalid_value")
    return Place(date, project_id)


ROUTES = [
    Route(
        method="GET",
        path="/organization/usage",
        name="listUsage",
        summary="List what projects have used, by day (extension)",
        call=list_usage,
        answer=UsagePage,
        query=UsageQuery,
        scope="admin",
    ),
]
