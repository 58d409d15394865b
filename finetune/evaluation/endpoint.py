"""Greedy answers of whatever an OpenAI endpoint serves: the scores are of what users really get."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console

from finetune.data.datasets import Dataset
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

MAX_ATTEMPTS = 6  # of a question whose answer is refused for now
TIMEOUT_SECONDS = 600.0  # of one answer


class Endpoint:
    """The model of an OpenAI API, asked `at_once` questions at once. Raises FinetuneError.

    The first model it lists answers. Images are sent as files, so the server's own limits shrink them.
    at_once: default per_device_eval_batch_size; check: raises FinetuneError if the server is known to have ended.
    """

    def __init__(
        self, url: str, recipe: Recipe, data: Dataset, console: Console, at_once: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        refuse_unsent(recipe, data, "--endpoint")
        self.at_once, self.check = at_once or recipe.per_device_eval_batch_size, check
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"  # with or without it, as `lensmith bench` takes it
        self.recipe = recipe
        self.rows: Sequence[Row] = data.rows
        key = os.environ.get("OPENAI_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.model = self._first_model()
        console.print(f"Answers come from {self.model} at {self.url}.", highlight=False)
        asked = f"{self.url} {self.model} {data.digest} {recipe.max_new_tokens} {recipe.max_samples}"
        self.identity = hashlib.sha256(asked.encode()).hexdigest()

    def answer(self, open_rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Answers as they come, from a thread that keeps so many questions in flight."""
        found: queue.Queue[tuple[int, str] | BaseException | None] = queue.Queue()
        stop = threading.Event()

        def run() -> None:
            try:
                asyncio.run(self._ask_all(open_rows, found, stop))
                found.put(None)
            except BaseException as error:
                found.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()

    def _first_model(self) -> str:
        try:
            response = httpx.get(f"{self.url}/models", headers=self.headers, timeout=30, follow_redirects=True)
            if response.status_code != 200:
                why = f"{response.status_code}: {_error_message(response)}"
                raise FinetuneError(f"--endpoint: {self.url}/models answers {why}")
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise FinetuneError(f"--endpoint: {self.url}/models cannot be read: {error}.") from None
        except (KeyError, IndexError, TypeError):
            raise FinetuneError(f"--endpoint: {self.url}/models lists no model.") from None

    async def _ask_all(self, rows: Sequence[int], found: Any, stop: threading.Event) -> None:
        waiting = iter(rows)

        async def ask_waiting(client: httpx.AsyncClient) -> None:
            for index in waiting:
                if stop.is_set():
                    return
                found.put((index, await self._ask(client, self.rows[index])))

        limits = httpx.Limits(max_connections=None)  # the number of questions in flight is the limit
        async with httpx.AsyncClient(headers=self.headers, timeout=TIMEOUT_SECONDS, limits=limits) as client:
            await asyncio.gather(*[ask_waiting(client) for _ in range(self.at_once)])

    async def _ask(self, client: httpx.AsyncClient, row: Row) -> str:
        """The answer to a row's chat before its last turn; waits as long as a busy server asks to."""
        body = {
            "model": self.model,
            "messages": await asyncio.to_thread(_openai_messages, row),
            "temperature": 0,
            "max_tokens": self.recipe.max_new_tokens,
        } | ({"tools": row.tools} if row.tools else {})  # fmt: skip
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                response = await client.post(f"{self.url}/chat/completions", json=body)
                if response.status_code == 200:
                    return _text(response.json()["choices"][0]["message"])
                why = f"{response.status_code}: {_error_message(response)}"
                wait = _retry_seconds(response.headers.get("Retry-After"), 2**attempt / 2)
                if response.status_code not in (429, 500, 502, 503, 504):
                    attempt = MAX_ATTEMPTS
            except httpx.HTTPError as error:
                self.check()
                why, wait = f"{type(error).__name__} {error}", 2**attempt / 2
            except (ValueError, KeyError, IndexError, TypeError):
                raise FinetuneError(f"{row.source}: {self.url} gave no chat completion.") from None
            if attempt == MAX_ATTEMPTS:
                break
            await asyncio.sleep(min(wait, 30))
        raise FinetuneError(f"{row.source}: {self.url} does not answer ({why}); the same command goes on from here.")


def refuse_unsent(recipe: Recipe, data: Dataset, option: str) -> None:
    """Raises FinetuneError for what cannot be asked over an API, by the option that asks for one."""
    if with_video := next((row for row in data.rows if row.videos), None):
        raise FinetuneError(
            f"{with_video.source}: rows with videos are not sent to an endpoint: Lensmith's gateway takes images "
            f"only, and others choose frames of their own; evaluate without {option}."
        )
    if recipe.box_format:
        raise FinetuneError(
            "box_format: how an endpoint resizes images is not known, so boxes cannot be moved to its coordinates; "
            f"evaluate without {option}, or write the boxes as its model does and unset box_format."
        )
    if recipe.image_sizes:
        raise FinetuneError("image_sizes is for this machine's answers; an endpoint sizes images itself: unset it.")


def _text(message: dict[str, Any]) -> str:
    """An answer's text, or the functions it calls in the form that rows' labels have."""
    calls = message.get("tool_calls")
    if calls:
        functions = [
            {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])} for call in calls
        ]
        return json.dumps(functions, ensure_ascii=False)
    return str(message.get("content") or "")


def _retry_seconds(retry_after: str | None, otherwise: float) -> float:
    """Retry-After in seconds; it may be a date, which is not worth reading here."""
    try:
        return max(0.0, float(str(retry_after)))
    except ValueError:
        return otherwise


def _error_message(response: httpx.Response) -> str:
    """The message of an OpenAI error, or the beginning of whatever the server sent instead."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _openai_messages(row: Row) -> list[dict[str, Any]]:
    """The chat before the answer, with images as data URIs."""
    images = iter(row.images)
    messages = []
    for message in row.messages[:-1]:
        parts = [
            {"type": "image_url", "image_url": {"url": _data_uri(next(images))}} if part["type"] == "image" else part
            for part in message["content"]
        ]
        texts = [str(part["text"]) for part in parts if part["type"] == "text"]
        messages.append(message | {"content": "".join(texts) if len(texts) == len(parts) else parts})
    return messages


def _data_uri(image: Path | str) -> str:
    if isinstance(image, str):
        return image
    try:
        with Image.open(image) as opened:
            kind = Image.MIME.get(opened.format or "", "image/png")
        return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    except OSError as error:
        raise FinetuneError(f"The image {image} cannot be read: {error}.") from None
