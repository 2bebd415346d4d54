"""Asynchronous events of one controller (NVM Express Base 2.0, section 5.2)."""

from __future__ import annotations

import asyncio
from collections import deque

from agent.embedded.nvmf.request import Refusal
from agent.embedded.nvmf.settings import ASYNC_EVENTS_MAX
from agent.nvmf.command import EVENT_NOTICE, EventInfo, LogPage
from agent.nvmf.identify import OptionalEvents
from agent.nvmf.status import Status

_PAGES: dict[EventInfo, tuple[LogPage, OptionalEvents]] = {
    EventInfo.NAMESPACE_ATTRIBUTE: (LogPage.CHANGED_NAMESPACES, OptionalEvents.NAMESPACE_ATTRIBUTE),
    EventInfo.ANA_CHANGE: (LogPage.ANA, OptionalEvents.ANA_CHANGE),
    EventInfo.DISCOVERY_LOG: (LogPage.DISCOVERY, OptionalEvents.DISCOVERY_LOG),
}
CHANGED_MAX = 1024


class Events:
    """Requests that wait for an event, and events that wait for a request. One kind is told once until it is read."""

    def __init__(self, enabled: OptionalEvents) -> None:
        self.enabled = int(enabled)
        self.changed: list[int] = []
        """The Changed Namespace List log page; [0xFFFFFFFF] when there were too many."""
        self._requests: dict[int, asyncio.Future[int]] = {}
        self._pending: deque[int] = deque()
        self._masked: set[LogPage] = set()

    async def wait(self, cid: int) -> int:
        """The result of an Asynchronous Event Request. Raises Refusal when too many wait or it is aborted."""
        if len(self._requests) >= ASYNC_EVENTS_MAX:
            raise Refusal(Status.ASYNC_EVENT_LIMIT_EXCEEDED)
        if self._pending:
            return self._pending.popleft()
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._requests[cid] = waiting
        try:
            return await waiting
        finally:
            self._requests.pop(cid, None)

    def abort(self, cid: int) -> bool:
        waiting = self._requests.get(cid)
        if waiting is None or waiting.done():
            return False
        waiting.set_exception(Refusal(Status.ABORTED_BY_REQUEST))
        return True

    def namespace_changed(self, nsid: int) -> None:
        if nsid not in self.changed and self.changed != [0xFFFFFFFF]:
            self.changed = [*self.changed, nsid] if len(self.changed) < CHANGED_MAX else [0xFFFFFFFF]
        self.notice(EventInfo.NAMESPACE_ATTRIBUTE)

    def notice(self, info: EventInfo) -> None:
        """Tell the host, unless it did not ask for this or has not read the log page of the last one."""
        page, option = _PAGES[info]
        if not self.enabled & option or page in self._masked:
            return
        self._masked.add(page)
        result = EVENT_NOTICE | info << 8 | page << 16
        for waiting in self._requests.values():
            if not waiting.done():
                waiting.set_result(result)
                return
        self._pending.append(result)

    def page_read(self, page: LogPage) -> None:
        """The host read the log page that belongs to the event: it may be told again."""
        self._masked.discard(page)
