"""An OpenAI-compatible server: one request, and what its failures mean."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from veripo_ray import config
from veripo_ray.errors import ConfigError, DataError
from veripo_ray.verifier.judges import openai_reply
from veripo_ray.verifier.judges.ask import Answered

_MAX_REPLY = 2**18  # bytes; twenty log-probabilities take two thousand
_ALTERNATIVES = 20  # log-probabilities of the first token: the most that OpenAI and vLLM give


class Failed(Exception):
    """server: at fault itself; otherwise this case is, and others may fare better."""

    def __init__(self, problem: str, *, server: bool = True) -> None:
        super().__init__(problem)
        self.server = server


class Busy(Failed):
    """What may pass by itself. after: seconds that the server asks to wait."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class Server:
    """The key goes into one header and nowhere else. Raises ConfigError for a URL or a key that
    cannot be used."""

    def __init__(self, cfg: config.OpenAiJudge) -> None:
        self._cfg, self._key, self._url = cfg, _key(cfg.api_key_env), _url(cfg.url or "")
        self.address = f"{self._url.scheme}://{self._url.netloc.decode()}"

    def connect(self) -> httpx.AsyncClient:
        """Connections to it, for one event loop. Whoever asks bounds the time."""
        parallel = self._cfg.parallel
        key = {"authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.AsyncClient(
            headers={"content-type": "application/json", "accept": "application/json"} | key,
            limits=httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel),
            # Loading certificates takes longer than a request; plain HTTP needs none.
            verify=self._url.scheme == "https",
            timeout=None,
        )

    async def complete(self, http: httpx.AsyncClient, prompt: str) -> Answered | str:
        """What the model says, or why that is no answer. Raises Failed, or Busy."""
        try:
            async with http.stream("POST", self._url, content=self._request(prompt)) as reply:
                body = await _read(reply)
        except httpx.TransportError as error:
            raise Busy(self._safe(f"{type(error).__name__}: {error}".rstrip(": "))) from error
        except httpx.DecodingError as error:
            raise Failed("its reply cannot be decompressed") from error
        if not reply.is_success:
            raise self._refusal(reply, body)
        try:
            return openai_reply.read(body, logprobs=self._cfg.logprobs)
        except DataError as error:
            raise Failed(f"{error.problem}; {error.fix}") from error

    def _request(self, prompt: str) -> bytes:
        asked: dict[str, Any] = {
            "model": self._cfg.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1,
            "temperature": 0,
        }
        if self._cfg.logprobs:
            asked |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        return json.dumps(asked).encode()  # escaped, so that half a surrogate pair can be sent

    def _refusal(self, reply: httpx.Response, body: bytes) -> Failed:
        status = reply.status_code
        said = " ".join(self._safe(body[:400].decode(errors="replace")).split())[:200]
        problem = f"it answered {status}: {said}".rstrip(": ")
        if status in (408, 429) or status >= 500:
            return Busy(problem, _seconds(reply.headers.get("retry-after", "")))
        if status in (401, 403):  # its text may quote the key
            return Failed(
                f"it answered {status} and wants another key; put a valid one into the environment "
                f"variable {self._cfg.api_key_env} (judges.openai.api_key_env)"
            )
        if status == 404 or reply.is_redirect:
            return Failed(f"{problem}; check judges.openai.url (it often ends in /v1) and .model")
        return Failed(problem, server=False)

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "(key)") if self._key else text


async def _read(reply: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in reply.aiter_bytes():
        body += chunk
        if len(body) > _MAX_REPLY:
            raise Failed(f"its reply is over {_MAX_REPLY} bytes")
    return bytes(body)


def _seconds(retry_after: str) -> float:
    """A Retry-After header: seconds or a date; 0 for none, or one that cannot be read."""
    value = retry_after.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    now = datetime.now(UTC if moment.tzinfo else None)
    return max(0.0, (moment - now).total_seconds())


def _url(base: str) -> httpx.URL:
    try:
        url = httpx.URL(f"{base.rstrip('/')}/chat/completions")
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(
            f"judges.openai.url = {base!r} is no address of a server",
            fix="give one such as http://host:8000/v1",
        )
    return url


def _key(variable: str) -> str:
    """The key in this environment variable; empty where there is none, as local servers like it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise ConfigError(
            f"the environment variable {variable} holds characters that no key has",
            fix=f"put the key alone into {variable} (judges.openai.api_key_env)",
        )
    return key
