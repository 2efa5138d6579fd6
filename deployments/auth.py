"""Who may ask: a bearer token, compared in constant time."""

from __future__ import annotations

import hmac
import ipaddress
import os
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from deployments.refusal import Refusal
from deployments.settings import Args
from veripo_ray.errors import ConfigError
from veripo_ray.verifier.client import TOKEN_ENV

_BEARER = HTTPBearer(auto_error=False, description="the token in the setting `token_env`")
_MIN_CHARACTERS = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to what is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token(args: Args, host: str) -> str | None:
    """The token that requests must bear at an endpoint bound to `host`, or None for everybody.

    Raises ConfigError when it would be None where other machines can connect and
    `allow_unauthenticated` is not set, or when the variable of `token_env` holds no good token.
    """
    name = args.token_env
    if name is None:
        if is_loopback(host) or args.allow_unauthenticated:
            return None
        name = TOKEN_ENV
    found = os.environ.get(name, "")
    if len(found) >= _MIN_CHARACTERS and found.isascii() and found.isprintable():
        return found
    said = f"is no token of {_MIN_CHARACTERS} ASCII characters or more" if found else "is not set"
    raise ConfigError(
        f"the verifier would listen on {host}, but the environment variable {name} {said}",
        fix=f"set {name} wherever a replica may run, bind to 127.0.0.1, or say "
        "allow_unauthenticated=true",
    )


class Bearer:
    """A dependency of routes: refuses a request without the token. `expected` None lets all in."""

    def __init__(self, expected: str | None) -> None:
        self._expected = None if expected is None else expected.encode()

    async def __call__(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        if self._expected is None:
            return
        offered = b"" if given is None else given.credentials.encode("utf-8", "replace")
        if not hmac.compare_digest(offered, self._expected):
            raise Refusal(
                401,
                "the request bears no token, or a wrong one",
                "send `authorization: Bearer TOKEN` with the token of the verifier's owner",
                {"www-authenticate": 'Bearer realm="veripo"'},
            )
