"""Errors as the OpenAI API writes them: {"error": {"message", "type", "param", "code"}}, whatever went wrong."""

import json
import logging
import re
import reprlib
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from cartridges.errors import CartridgesError

logger = logging.getLogger("cartridges.serving")

MAX_SHOWN = 80
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
KINDS = {"str", "int", "list", "float", "bool", "function"}  # what pydantic names a choice by
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ErrorBody(BaseModel):
    """What went wrong, as clients of the OpenAI API expect it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every reply that is no success."""

    error: ErrorBody


class ApiError(HTTPException):
    """A request that gets an error for its answer."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, " ".join(message.split()), headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """The reply's content."""
        return error_body(self.status_code, str(self.detail), self.param, self.code)

    def response(self) -> "Json":
        """The reply."""
        return Json(self.body(), self.status_code, self.headers)


class Json(JSONResponse):
    """JSON in ASCII, so that half a surrogate pair in a message is no trouble; never a NaN."""

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(content: Any) -> bytes:
    """Compact JSON."""
    return _ENCODER.encode(content).encode("ascii")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error's content."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Have `app` answer all its errors in this form."""

    def refused(request: Request, error: Exception) -> Json:
        if isinstance(error, ApiError):
            return error.response()
        assert isinstance(error, HTTPException)  # registered for it
        told = {
            404: f"there is nothing at {request.url.path[:MAX_SHOWN]}",
            405: f"{request.method} is not offered here",
        }
        message = told.get(error.status_code, str(error.detail))
        return Json(error_body(error.status_code, message), error.status_code, error.headers)

    def invalid(request: Request, error: Exception) -> Json:
        assert isinstance(error, RequestValidationError)
        return of_validation(error).response()

    def unusable(request: Request, error: Exception) -> Json:
        return ApiError(str(error)).response()

    def failed(request: Request, error: Exception) -> Json:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Json(error_body(500, "the server failed at this request; its log tells why"), 500)

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(CartridgesError, unusable)
    app.add_exception_handler(Exception, failed)


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request, by its place in the body.

    Where a value may be of several kinds, what is said is of the kind that it comes nearest to.
    """
    found = error.errors()
    of_first = [told for told in found if told["loc"][:2] == found[0]["loc"][:2]]
    first = min(of_first, key=lambda told: (told["type"].endswith("_type"), -len(told["loc"])))
    if first["type"] == "json_invalid":
        return ApiError(f"the body is no JSON: {first['ctx']['error']}")
    if len(first["loc"]) == 1:
        return ApiError("given a body that is no JSON object, expected one, with Content-Type: application/json")
    places = [str(part) for part in first["loc"][1:]]
    param = ".".join(part for part in places if re.fullmatch(r"[a-z_]+|\d+", part) and part not in KINDS)
    shown = "" if first["type"] == "missing" else f", given {_shown(first.get('input'))}"
    return ApiError(f"{param}: {first['msg']}{shown}", param, first["type"])


def _shown(given: object) -> str:
    text = repr(given[:MAX_SHOWN]) if isinstance(given, str) else reprlib.repr(given)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
