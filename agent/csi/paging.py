"""Pages of listings, in order of the ids. The token is the last id of the page before: changes do not shift pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from agent.csi.status import InvalidToken
from agent.errors import InvalidArgument, shorten
from agent.model import Snapshot, Volume

R = TypeVar("R", Volume, Snapshot)

_TOKEN_PREFIX = "after:"  # noqa: S105 - a page token


def check(max_entries: int) -> None:
    """Raises InvalidArgument for what is no number of entries."""
    if max_entries < 0:
        raise InvalidArgument("max_entries", f"{max_entries} is negative", "use 0 for all")


def last_of_page(token: str) -> str:
    """The id in a token; empty for the first page. Raises InvalidToken for one that was not handed out here."""
    last = token.removeprefix(_TOKEN_PREFIX)
    if token and (last == token or not last):
        raise InvalidToken(f"starting_token {shorten(token)!r} was not handed out by this server; list from the start")
    return last


def page(ordered: Sequence[R], after: str, max_entries: int) -> tuple[Sequence[R], str]:
    """The next `max_entries` (0: all) after the id `after`, and the token of the page that follows; empty: none."""
    left = [each for each in ordered if each.meta.name > after] if after else ordered
    found = left[:max_entries] if max_entries else left
    return found, _TOKEN_PREFIX + found[-1].meta.name if len(found) < len(left) else ""
