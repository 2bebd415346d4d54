"""Around every call: domain errors become status codes, anything unexpected INTERNAL, and the log says what was asked.

Requests are never logged, only the method and the volume, because requests carry secrets.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from agent.csi import status
from agent.errors import InvalidArgument, QuarryError, shorten
from agent.tally import Tally
from agent.tasks.guard import caller_waits_until

_log = logging.getLogger(__name__)

_Behaviour = Callable[[Any, Any], Awaitable[Any]]
_REPEATABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED})


class StatusInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps each unary handler, once; the services below raise errors of the domain only.

    `calls` counts what they answer, by method and code. `admit` is asked before each call of the Controller services
    and raises when it cannot be carried out here.
    """

    def __init__(self, calls: Tally, admit: Callable[[], None] | None = None) -> None:
        self._calls = calls
        self._admit = admit
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        known = self._wrapped.get(handler_call_details.method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        behaviour: Any = handler.unary_unary
        offered = inspect.iscoroutinefunction(behaviour)  # ours are, those of the generated base classes are not
        if offered and self._admit is not None and _is_decision(handler_call_details.method):
            behaviour = _admitted(self._admit, behaviour)
        wrapped = (
            _guarded(method, behaviour, handler.request_deserializer, self._calls) if offered else _not_offered(method)
        )
        # Requests arrive as bytes: gRPC itself answers UNKNOWN, with a traceback in the log, to those it cannot parse.
        made = grpc.unary_unary_rpc_method_handler(wrapped, response_serializer=handler.response_serializer)
        self._wrapped[handler_call_details.method] = made
        return made


def _is_decision(method: str) -> bool:
    """Whether it is a call of the Controller services other than what they can do."""
    service, _, name = method.rpartition("/")
    return service.endswith("Controller") and not name.endswith("GetCapabilities")


def _admitted(admit: Callable[[], None], behaviour: _Behaviour) -> _Behaviour:
    async def admitted(request: Any, context: Any) -> Any:
        admit()
        return await behaviour(request, context)

    return admitted


def _not_offered(method: str) -> _Behaviour:
    async def behaviour(_request: Any, context: Any) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered by this driver")
        raise AssertionError  # abort() does not return

    return behaviour


def _guarded(method: str, behaviour: _Behaviour, parse: Any, calls: Tally) -> _Behaviour:
    async def guarded(raw: bytes, context: Any) -> Any:
        started = time.monotonic()
        request, code = None, grpc.StatusCode.OK
        try:
            request = _parsed(parse, raw)
            remaining_s = context.time_remaining()
            if remaining_s is not None:
                caller_waits_until.set(started + remaining_s)
            response = await behaviour(request, context)
        except QuarryError as error:
            code, message = status.code_of(error), status.message_of(error)
            _report(method, request, code, started, error)
        except asyncio.CancelledError:  # the caller went away or its deadline passed: nobody reads an answer
            code = grpc.StatusCode.CANCELLED
            _report(method, request, code, started)
            raise
        except Exception as error:  # noqa: BLE001 - outermost: a defect of ours must answer, and only the log shows it
            code, message = grpc.StatusCode.INTERNAL, f"{method} failed unexpectedly; the agent's log has the details"
            _report(method, request, code, started, error)
        else:
            _report(method, request, code, started)
            return response
        finally:
            calls.add((method, code.name), time.monotonic() - started)
        return await context.abort(code, message)

    return guarded


def _parsed(parse: Any, raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidArgument("request", "not a protobuf message of CSI v1", "check the caller's version") from error


def _report(method: str, request: Any, code: grpc.StatusCode, started: float, error: Exception | None = None) -> None:
    """One line per call: OK quietly, refusals as information, what may be our fault louder."""
    expected = isinstance(error, QuarryError)
    if code is grpc.StatusCode.OK:
        level = logging.DEBUG
    elif code is grpc.StatusCode.INTERNAL:
        level = logging.ERROR
    else:
        level = logging.WARNING if code in _REPEATABLE else logging.INFO
    if not _log.isEnabledFor(level):
        return
    volume = shorten(getattr(request, "volume_id", "") or getattr(request, "name", ""))
    seconds = time.monotonic() - started
    _log.log(
        level,
        "%s %s%s%s",
        method,
        code.name,
        f" volume {volume!r}" if volume else "",
        f": {shorten(str(error), 500)}" if expected else "",
        exc_info=error if error is not None and not expected else None,
        extra={"method": method, "code": code.name, "volume": volume, "seconds": round(seconds, 4)},
    )
