"""Answers that are not 200: one shape for all, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from veripo_ray.errors import DataError, VeripoError
from veripo_ray.verifier.bodies import TooLargeError


class Refusal(Exception):
    """An answer that is not 200: what is wrong, and the fix."""

    def __init__(
        self, status: int, problem: str, fix: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(problem)
        self.status, self.problem, self.fix = status, problem, fix
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: VeripoError) -> Refusal:
        status = 413 if isinstance(error, TooLargeError) else 400
        return cls(status, error.problem, error.fix)

    def response(self) -> JSONResponse:
        body = {"error": self.problem, "fix": self.fix}
        return JSONResponse(body, self.status, headers=self.headers)


def install(api: FastAPI) -> None:
    """Every refusal of `api`, its own 404 and 405 included, has this one shape."""
    api.add_exception_handler(Refusal, _refused)
    api.add_exception_handler(DataError, _bad_data)
    api.add_exception_handler(HTTPException, _no_such_route)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return error.response()


async def _bad_data(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DataError)
    return Refusal.of(error).response()


async def _no_such_route(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    fix = "see /docs for what there is"
    return Refusal(error.status_code, str(error.detail), fix, error.headers).response()
