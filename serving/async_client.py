"""The client of `recommend` for asyncio: the same calls, deadlines, retries and errors as `omnifeed.serving.client`."""

from __future__ import annotations

import asyncio
from typing import Unpack

import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from omnifeed.errors import OmnifeedError
from omnifeed.serving.wire import (
    CHANNEL_ARGS,
    DRAINING,
    MODEL,
    RETRY_S,
    Options,
    Recommendation,
    headers,
    recommendation,
    request_tensors,
    translated,
)


class AsyncClient:
    """One gRPC channel of one event loop; make it inside the loop, share it between tasks.

    Args:
        url: host:port of the server's gRPC; of a name with several addresses each is asked in turn.
        deadline_s: of a whole call, retries included.
    """

    def __init__(self, url: str, deadline_s: float = 2.0) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._triton: triton.InferenceServerClient | None = triton.InferenceServerClient(url, channel_args=CHANNEL_ARGS)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        if self._triton is not None:
            await self._triton.close()
            self._triton = None

    async def recommend(
        self, user_id: str, scenario: str, query: str | None = None, **options: Unpack[Options]
    ) -> Recommendation:
        """Ask for a slate; arguments and errors are those of `Client.recommend`."""
        if self._triton is None:
            raise OmnifeedError("This client is closed.", "Make another.")
        inputs, metadata = request_tensors(user_id, scenario, query, options), headers(options)
        loop = asyncio.get_running_loop()
        end = loop.time() + (options.get("deadline_s") or self._deadline_s)
        while True:
            left = max(end - loop.time(), 0.001)
            try:
                return recommendation(await self._triton.infer(MODEL, inputs, client_timeout=left, headers=metadata))
            except InferenceServerException as error:
                if DRAINING not in str(error.message()) or loop.time() + RETRY_S >= end:
                    raise translated(error, self._url) from None
            await asyncio.sleep(RETRY_S)
