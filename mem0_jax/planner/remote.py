"""Planners behind the OpenAI chat API: vLLM, `mem0-jax plan serve`, and others."""

from __future__ import annotations

import importlib
import json
import re
import time
from typing import Any
from urllib.parse import urlsplit

from mem0_jax.errors import UserError
from mem0_jax.inference.planning import Plan, PlannerError, Situation
from mem0_jax.installed import how_to_install
from mem0_jax.planner.prompt import ask, parse_answer
from mem0_jax.planner.render import chat_messages

MAX_TOKENS = 512  # of an answer
MAX_BYTES = 2**20  # of an answer, its JSON around it
MAX_PAUSE = 8.0  # seconds between two attempts
WARMTH = 0.7  # temperature of repeated questions: a greedy answer would stay as it is
_PASSING = (408, 409, 425, 429)  # besides 5xx


class _UnusableError(Exception):
    """An answer worth asking again for."""


class RemotePlanner:
    """Asks a server for the next subtask.

    The first answer is the likeliest one (temperature 0). A server that cannot be reached, is overloaded or answers
    nonsense is asked again, at most `retries` times, with growing pauses. Safe to use from several threads.

    Args:
        base_url: address of the API, such as "http://localhost:8000/v1"; "/v1" is added where there is no path.
        model: name of the model; by default the first that the server lists.
        api_key: the server's key, if it has one.
        timeout: seconds that one attempt may take.
        retries: further attempts.
        summary: a planner that carries a running summary in place of the list of key frames.

    Raises:
        UserError: a setting cannot be, or the package `openai` is missing.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str = "EMPTY",
        timeout: float = 60.0,
        retries: int = 3,
        summary: bool = False,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"the planner's address is {base_url!r}; expected one such as http://localhost:8000/v1")
        if timeout <= 0 or retries < 0:
            raise UserError(f"the planner's timeout is {timeout} s and its retries {retries}; expected > 0 and >= 0")
        try:
            self._openai: Any = importlib.import_module("openai")
        except ImportError as error:
            raise UserError(f"a remote planner needs the package openai: {how_to_install('plan')}") from error
        self.base_url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.model, self.timeout, self.retries, self.summary = model, timeout, retries, summary
        self._client = self._openai.OpenAI(api_key=api_key, base_url=self.base_url, timeout=timeout, max_retries=0)

    def next_subtask(self, situation: Situation) -> Plan:
        """Asks for the next subtask. Raises PlannerError."""
        messages = chat_messages(ask(situation, self.summary))
        reason: _UnusableError | None = None
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(messages, attempt)
            except _UnusableError as error:
                reason = error
            if attempt < self.retries:
                time.sleep(min(0.5 * 2**attempt, MAX_PAUSE))
        raise PlannerError(f"{reason} (asked {self.retries + 1} times)") from reason

    def models(self) -> list[str]:
        """Names of the server's models. Raises PlannerError."""
        try:
            return self._listed()
        except _UnusableError as error:
            raise PlannerError(str(error)) from error

    def _attempt(self, messages: list[dict[str, Any]], attempt: int) -> Plan:
        if self.model is None:
            listed = self._listed()
            if not listed:
                raise PlannerError(f"the planner at {self.base_url} has no models")
            self.model = listed[0]
        answer = self._read(
            self._client.chat.completions.with_streaming_response.create,
            model=self.model,
            messages=messages,
            max_tokens=MAX_TOKENS,
            temperature=WARMTH if attempt else 0.0,
            seed=attempt,
        )
        try:
            choice = answer["choices"][0]
            text, whole = choice["message"]["content"], choice.get("finish_reason") != "length"
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _UnusableError(f"the planner at {self.base_url} gave no text: {_quote(json.dumps(answer))}") from None
        try:
            return parse_answer(text, self.summary, whole)
        except PlannerError as error:
            raise _UnusableError(str(error)) from error

    def _listed(self) -> list[str]:
        answer = self._read(self._client.models.with_streaming_response.list)
        try:
            return [str(model["id"]) for model in answer["data"]]
        except (KeyError, TypeError):
            raise _UnusableError(
                f"the planner at {self.base_url} lists no models: {_quote(json.dumps(answer))}"
            ) from None

    def _read(self, call: Any, **arguments: Any) -> Any:
        """The JSON that a call answers with, read within `timeout` and up to `MAX_BYTES`."""
        deadline, body = time.monotonic() + self.timeout, bytearray()
        try:
            with call(**arguments) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > deadline:
                        raise _UnusableError(f"the planner at {self.base_url} did not answer within {self.timeout} s")
                    if len(body) > MAX_BYTES:
                        raise _UnusableError(f"the planner at {self.base_url} answers more than {MAX_BYTES} bytes")
        except self._openai.OpenAIError as error:
            raise self._told(error) from error
        except _UnusableError:
            raise
        except Exception as error:  # of the HTTP library beneath, whose name depends on openai's version
            raise _UnusableError(f"the planner at {self.base_url} broke off its answer: {error}") from error
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace")
            raise _UnusableError(f"the planner at {self.base_url} answered no JSON but {_quote(text)}") from None

    def _told(self, error: Any) -> Exception:
        """What went wrong in words: `_UnusableError` where asking again may help, else PlannerError."""
        openai, where = self._openai, f"the planner at {self.base_url}"
        if isinstance(error, openai.APITimeoutError):
            return _UnusableError(f"{where} did not answer within {self.timeout} s")
        if isinstance(error, openai.APIConnectionError):
            return _UnusableError(f"{where} cannot be reached ({error.__cause__ or error}); is it running?")
        if not isinstance(error, openai.APIStatusError):
            return PlannerError(f"{where}: {error}")
        status, said = error.status_code, _quote(_said(error))
        if status in _PASSING or status >= 500:
            return _UnusableError(f"{where} answered {status}: {said}")
        if status in (401, 403):
            return PlannerError(f"{where} refuses the key: {said}; give its key as api_key")
        if status == 404:
            return PlannerError(f"{where} does not know the model {self.model!r} or the address: {said}{self._known()}")
        if status == 413 or re.search("context|too long|longer than", said):
            return PlannerError(
                f"the question is too long for {where}: {said}; serve it with a longer context, or use a planner with "
                "summaries"
            )
        return PlannerError(f"{where} refused the question with {status}: {said}")

    def _known(self) -> str:
        if self.model is None:
            return ""
        try:
            return f"; its models are {', '.join(self._listed())}"
        except (_UnusableError, PlannerError):
            return ""


def _said(error: Any) -> str:
    """The server's own words."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else str(error)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 300 else text[:300] + " ...")
