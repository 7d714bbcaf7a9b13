"""Private: converts errors to HTTP responses, and logs them."""

from __future__ import annotations

import logging
import math

from .errors import WattfareAuthError, WattfareError
from .logs import describe, get_logger
from .users import AppError, NotSignedInError
from .web import Request, Response, json_response

logger = get_logger("wattfare_mw")

LetThrough = tuple[type[Exception], ...]
"""The exceptions that a web framework converts to responses itself, such as ``HTTPException``. If
one of the app's functions raises such an exception, it is passed on to the framework."""


class MethodNotAllowedError(WattfareError):
    """The path does not support this method."""

    default_code = "invalid_request"
    default_status = 405

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"This path supports only {self.allowed}.")


def refuse_other_methods(request: Request, *allowed: str) -> None:
    """Raise a :class:`MethodNotAllowedError` if the request has another method."""
    if request.method not in allowed:
        raise MethodNotAllowedError(allowed)


def respond_to_failure(
    failure: Exception, request_id: str | None = None, let_through: LetThrough = ()
) -> Response | None:
    """Return the response to an exception, in its ``except`` block. A WattfareError becomes its
    JSON with its status. Any other exception becomes a 500 without details, and the log gets the
    details. For one of ``let_through``, return None, and the caller raises it again."""
    if isinstance(failure, WattfareError):
        return respond_to_error(failure, request_id)
    if isinstance(failure, let_through):
        return None  # if raised here, it would form a reference cycle with its traceback
    if isinstance(failure, AppError):
        logger.exception("%s request_id=%s", failure, request_id)
    else:
        logger.exception("A request could not be answered. request_id=%s", request_id)
    return error_response(
        WattfareError("The app failed to handle this request. Its log has the details.", status=500)
    )


def respond_to_error(error: WattfareError, request_id: str | None = None) -> Response:
    """Return the response to an error, and log the error if necessary. Adapters also use it for
    errors that the app's own views raise."""
    if isinstance(error, WattfareAuthError) and not isinstance(error, NotSignedInError):
        logger.error(
            "The service refused this app's secret key (%s). Until WATTFARE_SECRET_KEY is"
            " corrected, all calls fail. To find the cause, type: wattfare doctor. request_id=%s",
            error.status,
            request_id,
        )
    else:
        log_server_error(logger, error, request_id)
    return error_response(error)


def log_server_error(log: logging.Logger, error: WattfareError, request_id: str | None) -> None:
    """Log a warning, if the status of the response is 500 or above."""
    if error.http_status >= 500:
        log.warning("%s request_id=%s", describe(error), request_id)


def error_response(error: WattfareError) -> Response:
    """The response to an error."""
    return json_response(error.http_status, error.to_json(), error_headers(error))


def error_headers(error: WattfareError) -> dict[str, str]:
    """The headers of a response to this error, without the content type."""
    headers: dict[str, str] = {}
    if isinstance(error, MethodNotAllowedError):
        headers["allow"] = error.allowed
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.http_status == 409:  # openai's clients would repeat the call
        headers["x-should-retry"] = "false"
    return headers
