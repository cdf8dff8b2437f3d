"""A typed client of `recommend` over gRPC: deadlines, retries of what is safe, errors that say what to do.

A request carries its own id, so that one sent twice is logged twice under the same id and counted once; only an
unavailable server is asked again. `omnifeed.serving.async_client` is the same for asyncio.
"""

from __future__ import annotations

import time
from typing import Unpack

import tritonclient.grpc as triton
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


class Client:
    """One gRPC channel; safe to share between threads.

    Args:
        url: host:port of the server's gRPC; of a name with several addresses each is asked in turn.
        deadline_s: of a whole call, retries included.
    """

    def __init__(self, url: str, deadline_s: float = 2.0) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._triton: triton.InferenceServerClient | None = triton.InferenceServerClient(url, channel_args=CHANNEL_ARGS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel, and let go of it: tritonclient closes again, noisily, when the interpreter ends."""
        if self._triton is not None:
            self._triton.close()
            self._triton = None

    def recommend(
        self, user_id: str, scenario: str, query: str | None = None, **options: Unpack[Options]
    ) -> Recommendation:
        """Ask for a slate.

        Args:
            query: what the user typed; None outside search.
            options: see `Options`.

        Raises:
            InputError: the server refused the request.
            UnavailableError: no answer within the deadline; asking again is safe with the same request_id.
            OmnifeedError: the server failed.
        """
        if self._triton is None:
            raise OmnifeedError("This client is closed.", "Make another.")
        inputs, metadata = request_tensors(user_id, scenario, query, options), headers(options)
        end = time.monotonic() + (options.get("deadline_s") or self._deadline_s)
        while True:
            left = max(end - time.monotonic(), 0.001)
            try:
                return recommendation(self._triton.infer(MODEL, inputs, client_timeout=left, headers=metadata))
            except InferenceServerException as error:
                if DRAINING not in str(error.message()) or time.monotonic() + RETRY_S >= end:
                    raise translated(error, self._url) from None
                time.sleep(RETRY_S)
