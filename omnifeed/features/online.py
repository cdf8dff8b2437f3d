"""Reading one user row from the feature server, under a deadline.

Standard library and numpy only: the model server's Python cannot import Feast. One kept-alive connection, because a
new one costs more than the read.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any

from omnifeed.errors import UnavailableError
from omnifeed.export.encode import UserRow
from omnifeed.features.spec import of

SERVICE = "recommend_user"
_SCALARS = tuple(feature.name for feature in of("user_profile", "user_daily"))
#: Views whose rows say when they were computed; see `feature_repo/definitions.py`.
DATED = ("user_daily", "user_history")


def user_row(values: Mapping[str, Any]) -> UserRow:
    """A user row from feature values by name; null or absent features are left out.

    Args:
        values: scalars of user_profile and user_daily, lists of user_history, and `<view>_as_of` of the dated views.
    """
    return UserRow(
        values={name: values[name] for name in _SCALARS if values.get(name) is not None},
        history_item=tuple(values.get("history_item") or ()),
        history_action=tuple(int(value) for value in values.get("history_action") or ()),
        history_scenario=tuple(values.get("history_scenario") or ()),
        history_ts=tuple(int(value) for value in values.get("history_ts") or ()),
        as_of={view: int(values[f"{view}_as_of"]) for view in DATED if values.get(f"{view}_as_of") is not None},
    )


def user_row_from_response(answer: Mapping[str, Any]) -> UserRow:
    """The user row in the feature server's JSON answer about one user.

    Raises:
        UnavailableError: the answer is not one of Feast's.
    """
    try:
        names = answer["metadata"]["feature_names"]
        return user_row({name: result["values"][0] for name, result in zip(names, answer["results"], strict=True)})
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnavailableError(
            f"The feature server's answer is malformed: {error!r}.", "Check that a feature server listens on this port."
        ) from error


class FeatureClient:
    """A kept-alive connection to the feature server; for one thread."""

    def __init__(self, host: str, port: int) -> None:
        self._where = f"{host}:{port}"
        self._connection = http.client.HTTPConnection(host, port)

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        """Read one user; an unknown user has no features and an empty history.

        Raises:
            UnavailableError: no answer in time, no server, or an answer that is not a user row.
        """
        deadline = time.monotonic() + timeout_s
        body = json.dumps({"feature_service": SERVICE, "entities": {"user_id": [user_id]}}).encode()
        kept_alive = self._connection.sock is not None
        try:
            try:
                status, raw = self._post(body, deadline)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if not kept_alive:
                    raise
                self.close()  # the server closed an idle connection between two requests
                status, raw = self._post(body, deadline)
            if status != 200:
                raise UnavailableError(
                    f"The feature server at {self._where} answered {status}: {raw[:200].decode(errors='replace')}.",
                    "See the feature server's log.",
                )
            return user_row_from_response(json.loads(raw))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise UnavailableError(
                f"The feature server at {self._where} gave no answer within {timeout_s * 1000:.0f} ms: {error!r}.",
                "Start it, or raise serving.feature_deadline_ms.",
            ) from error

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        self._connection.close()

    def _post(self, body: bytes, deadline: float) -> tuple[int, bytes]:
        self._allow(deadline)
        self._connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
        self._allow(deadline)
        response = self._connection.getresponse()
        self._allow(deadline)
        return response.status, response.read()

    def _allow(self, deadline: float) -> None:
        """Let the next socket operation take at most what is left until the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        self._connection.timeout = left
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left)
