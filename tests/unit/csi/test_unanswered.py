"""Methods that nobody knows, services that are not offered, and calls that are given up around their answer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import grpc
import grpc.aio
import pytest

from .conftest import Driver

METHODS = ("/csi.v1.Node/NoSuchMethod", "/csi.v1.SnapshotMetadata/GetMetadataDelta", "/no.such.Service/Method")


async def answer(channel: grpc.aio.Channel, method: str, timeout_s: float) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary(method)(b"", timeout=timeout_s)
    return failure.value.code()


@pytest.mark.parametrize("method", METHODS)
async def test_they_are_refused(driver: Driver, method: str) -> None:
    async with grpc.aio.insecure_channel(driver.endpoint) as channel:
        assert await answer(channel, method, 10) is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_given_up_leave_no_trace(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """An answer cannot be sent to a caller who left at that moment, as one in 3,000 of these does."""
    caplog.set_level(logging.WARNING)
    answers: Counter[grpc.StatusCode] = Counter()
    async with grpc.aio.insecure_channel(driver.endpoint) as channel:
        for _ in range(12):
            timeouts_s = (0.0005, 0.005, 0.05, 10.0) * 100
            answers.update(await asyncio.gather(*(answer(channel, METHODS[1], each) for each in timeouts_s)))
    assert answers[grpc.StatusCode.UNIMPLEMENTED] >= 1200
    assert answers[grpc.StatusCode.DEADLINE_EXCEEDED] > 0
    assert not [record for record in caplog.records if record.exc_info], caplog.text
