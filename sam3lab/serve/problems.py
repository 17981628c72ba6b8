"""How the API says no: RFC 9457's problem+json, one sentence each, from whatever a request ended in."""

import http
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from sam3lab.errors import UserError
from sam3lab.serve.request import Busy, Late, NotReady, ServiceError, WorkerLost

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_body",
    413: "too_large",
    415: "unsupported",
    421: "unknown_host",
    422: "invalid",
    429: "busy",
    499: "gone",
    500: "error",
    503: "not_ready",
}
LATE, LOST = "late", "worker_lost"
OUTCOMES = ("ok", *CODES.values(), LATE, LOST, "other")
_CODE = "sam3lab.code"  # where a request's scope keeps it for the log and the metrics
_ERRORS = {Busy: (429, CODES[429]), Late: (503, LATE), WorkerLost: (503, LOST), NotReady: (503, CODES[503])}
_WORDS = 300  # the longest message of a validation that is passed on

log = logging.getLogger("sam3lab.serve")


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="what is wrong, and what to do")
    code: str = Field(description="the kind of problem, for programs: " + ", ".join(OUTCOMES[1:-1]))


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def response(
    scope: Scope, status: int, detail: str, code: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    """The problem as the answer to the request of `scope`. `code` is the status's own where it is not given."""
    code = code or CODES.get(status, "other")
    scope[_CODE] = code
    problem = Problem(title=http.HTTPStatus(status).phrase, status=status, detail=detail, code=code)
    return JSONResponse(problem.model_dump(), status, headers, media_type="application/problem+json")


def gone(scope: Scope) -> None:
    """The client of the request went; whatever it is answered, nobody reads it. For the metrics."""
    scope[_CODE] = CODES[499]


def outcome(scope: Scope, status: int) -> str:
    """One of OUTCOMES, for the metrics."""
    return scope.get(_CODE) or ("ok" if status < 400 else CODES.get(status, "other"))


def service_problem(scope: Scope, error: ServiceError) -> JSONResponse:
    """429 where the queue is full, 503 otherwise."""
    status, code = next((found for kind, found in _ERRORS.items() if isinstance(error, kind)), (503, CODES[503]))
    sentence, headers = told(error)
    return response(scope, status, sentence, code, headers)


def told(error: ServiceError) -> tuple[str, dict[str, str]]:
    """What a client is told of it, and the header that goes with that: when to try again, where that may help."""
    if error.seconds is None:
        return str(error), {}
    return f"{error}; try again in {error.seconds} s", {"Retry-After": str(error.seconds)}


def add_handlers(app: FastAPI) -> None:
    """Let `app` answer in this way, its own errors too."""

    @app.exception_handler(UserError)
    def _(request: Request, error: UserError) -> Response:
        return response(request.scope, 422, str(error))

    @app.exception_handler(ServiceError)
    def _(request: Request, error: ServiceError) -> Response:
        return service_problem(request.scope, error)

    @app.exception_handler(RequestValidationError)
    def _(request: Request, error: RequestValidationError) -> Response:
        sentences = [f"{_place(each['loc'])}: {each['msg']}" for each in error.errors()[:3]]
        return response(request.scope, 422, "; ".join(sentences)[:_WORDS] + "; /openapi.json says what is asked for")

    @app.exception_handler(HTTPException)
    def _(request: Request, error: HTTPException) -> Response:
        return response(request.scope, error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(ClientGone)
    def _(request: Request, error: ClientGone) -> Response:
        gone(request.scope)
        return Response(status_code=499)  # for the log

    @app.exception_handler(Exception)
    def _(request: Request, error: Exception) -> Response:
        return response(request.scope, 500, "something went wrong here, not in the request; the server's log has more")


def _place(path: tuple) -> str:
    """The field that a validation names, cut to what a name may be; the value is never repeated."""
    return repr(".".join(str(part) for part in path if part != "body")[:40])
