"""A tiny engine that speaks OpenAI's HTTP and misbehaves on request. Same command line as `python -m gateway.embedded`.

The last message's text decides: `count 5` answers five tokens, `echo` answers with what the engine was sent, `tools`
calls the first tool, as a tool_choice of `required` does, a response_format gets the least that it allows, `cut` ends
at the limit, and `fault NAME` fails in that way. GET /stats tells what happened here; `--start-fault` fails before
anything is served; `--no-abort` cannot end an answer early.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time

from aiohttp import web

KEY = os.environ.get("LENSMITH_ENGINE_KEY")
ENVELOPE = {"error": {"message": "max_tokens is too large", "type": "x", "param": "max_tokens", "code": "too_large"}}
FLAT = {"object": "error", "message": "prompt exceeds the context length", "type": "x", "param": None, "code": 400}
# As LMDeploy's: colons, a label `engine` of its own, gauges that are seconds old; and two lines that are no samples.
METRICS = """# HELP lmdeploy:prompt_tokens_total Number of prefill tokens.
# TYPE lmdeploy:prompt_tokens_total counter
lmdeploy:prompt_tokens_total{engine="0",model_name="fake"} 35.0
# HELP lmdeploy:prompt_tokens_created Number of prefill tokens.
# TYPE lmdeploy:prompt_tokens_created gauge
lmdeploy:prompt_tokens_created{engine="0",model_name="fake"} 1.7e+09
# HELP lmdeploy:num_requests_running Number of requests.
# TYPE lmdeploy:num_requests_running gauge
lmdeploy:num_requests_running{engine="0",model_name="fake"} 51.0
# HELP lmdeploy:cached_tokens_total Number of prompt tokens from the prefix cache.
# TYPE lmdeploy:cached_tokens_total counter
lmdeploy:cached_tokens_total{engine="0",model_name="fake"} 5.0
# HELP lmdeploy:gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage.
# TYPE lmdeploy:gpu_cache_usage_perc gauge
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="fake"} 0.25
# HELP lmdeploy:time_to_first_token_seconds Seconds.
# TYPE lmdeploy:time_to_first_token_seconds histogram
lmdeploy:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="fake"} 3.0
lmdeploy:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="fake"} 3.0
lmdeploy:time_to_first_token_seconds_count{engine="0",model_name="fake"} 3.0
lmdeploy:time_to_first_token_seconds_sum{engine="0",model_name="fake"} 1.5
# HELP lmdeploy:e2e_request_latency_seconds Seconds.
# TYPE lmdeploy:e2e_request_latency_seconds histogram
lmdeploy:e2e_request_latency_seconds_bucket{engine="0",le="1.0",model_name="fake"} 2.0
lmdeploy:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="fake"} 3.0
lmdeploy:e2e_request_latency_seconds_count{engine="0",model_name="fake"} 3.0
lmdeploy:e2e_request_latency_seconds_sum{engine="0",model_name="fake"} 4.5
# HELP lensmith_engine_up Not ours.
# TYPE lensmith_engine_up gauge
lensmith_engine_up 7
broken{le="1} 3
broken text
"""
HTML = "<html><body>Bad gateway at /srv/secret/path</body></html>"


def raw_log_prob(token: str) -> dict:
    """In LMDeploy's form: the token as its vocabulary spells it, and missing among its alternatives."""
    others = [{"token": "Ġcenter", "logprob": -0.5, "bytes": []}, {"token": "Ã©", "logprob": -3.0, "bytes": []}]
    return {"token": token.replace(" ", "Ġ"), "logprob": -1.0, "bytes": [], "top_logprobs": others}


def least(schema: dict) -> object:
    """The least that a JSON schema allows, of the kinds that the tests use."""
    if "enum" in schema:
        return schema["enum"][0]
    values = {"string": "", "boolean": False, "integer": 0, "number": 0, "array": []}
    return values.get(schema.get("type", ""), {name: least(of) for name, of in schema.get("properties", {}).items()})


class FakeEngine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.stats = {"started": 0, "aborted": 0, "finished": 0, "connections": 0}
        self.running = 0
        self.aborts = True
        self.sessions: dict[int, bool] = {}  # of answers in progress: whether each is to end
        self.seen_connections: set[object] = set()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    async def health(self, request: web.Request) -> web.Response:
        if KEY and request.headers.get("authorization") != f"Bearer {KEY}":
            return web.json_response(FLAT, status=401)
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        if KEY and request.headers.get("authorization") != f"Bearer {KEY}":
            return web.json_response(FLAT, status=401)
        await asyncio.sleep(float(os.environ.get("FAKE_METRICS_SECONDS", "0")))
        return web.Response(text=METRICS)

    async def show_stats(self, request: web.Request) -> web.Response:
        return web.json_response({**self.stats, "running": self.running})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if KEY and request.headers.get("authorization") != f"Bearer {KEY}":
            return web.json_response(FLAT, status=401)
        if request.transport not in self.seen_connections:
            self.seen_connections.add(request.transport)
            self.stats["connections"] += 1
        self.stats["started"] += 1
        self.running += 1
        try:
            answer = await self._answer(request)
            self.stats["finished"] += 1
            return answer
        except (asyncio.CancelledError, ConnectionResetError):
            self.stats["aborted"] += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        content = body["messages"][-1].get("content") or ""
        text = content if isinstance(content, str) else "".join(p.get("text", "") for p in content or ())
        words = text.split()
        if words[:1] == ["fault"]:
            return await self._fault(request, body, words[1], words[2:])
        if words[:1] == ["echo"]:
            tokens = [json.dumps({"headers": dict(request.headers), "body": body})]
        elif words[:1] == ["slow"]:
            await asyncio.sleep(float(words[1]))
            tokens = ["late"]
        elif words[:1] == ["count"]:
            tokens = [f"{n} " for n in range(int(words[1]))]
        elif (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
            tokens = [
                json.dumps(least(body["response_format"].get("json_schema", {}).get("schema", {"type": "object"})))
            ]
        else:
            tokens = ["Hello", " wörld", " 🙂"]
        if words[:1] == ["tools"]:
            return await self._call_tool(request, body, body["tools"][0]["function"]["name"])
        if body.get("tool_choice") == "required":
            function = body["tools"][0]["function"]
            arguments = json.dumps(least(function.get("parameters", {})))
            return await self._call_tool(request, body, function["name"], arguments)
        pause = float(words[2]) if words[:1] == ["count"] and len(words) > 2 else 0.0
        if body.get("ignore_eos"):
            tokens, pause = tokens * body["max_tokens"], 0.01
            tokens = tokens[: body["max_tokens"]]
        finish = "length" if words[:1] == ["cut"] else "stop"
        if not body.get("stream"):
            whole = self._whole("".join(tokens), len(tokens))
            whole["choices"][0]["finish_reason"] = finish
            if words[:1] == ["think"]:
                whole["choices"][0]["message"]["reasoning_content"] = "Let me see."
            if body.get("user") == "uncounted":
                del whole["usage"]
            if body.get("logprobs"):
                whole["choices"][0]["logprobs"] = {"content": [raw_log_prob(token) for token in tokens]}
            return web.json_response(whole)
        stream = await self._open(request)
        if words[:1] == ["think"]:
            for thought in ("Let me", " see."):
                await stream.write(self._chunk({"reasoning_content": thought}))
        session, count = self._begin_session(body), 0
        for token in tokens:
            log_prob = raw_log_prob(token) if body.get("logprobs") else None
            await stream.write(self._chunk({"content": token}, log_prob=log_prob))
            count += 1
            if pause:
                await asyncio.sleep(pause)
            if self.sessions.get(session):
                finish = "abort"
                break
        self.sessions.pop(session, None)
        await stream.write(self._chunk({}, finish))
        if (body.get("stream_options") or {}).get("include_usage") and body.get("user") != "uncounted":
            await stream.write(self._usage(count))
        await stream.write(b"data: [DONE]\n\n")
        return stream

    def _begin_session(self, body: dict) -> int:
        session = body.get("session_id", -1)
        assert session == -1 or session not in self.sessions, "LMDeploy would refuse it"
        self.sessions[session] = False
        return session

    async def abort(self, request: web.Request) -> web.Response:
        """LMDeploy's: ends one answer, with its usage."""
        if KEY and request.headers.get("authorization") != f"Bearer {KEY}":
            return web.json_response(FLAT, status=401)
        if not self.aborts:
            return web.Response(status=501, text="Enable with --enable-abort-handling flag.")
        session = json.loads(await request.text())["session_id"]
        if session not in self.sessions:
            return web.json_response({**FLAT, "message": f"Session {session} not found."}, status=400)
        self.sessions[session] = True
        return web.Response()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """A text completion: `count`, `echo` and `fault` as in a chat."""
        body = json.loads(await request.text())
        words = body["prompt"].split()
        if words[:1] == ["fault"]:
            return await self._fault(request, body, words[1], words[2:])
        tokens = [f"{n} " for n in range(int(words[1]))] if words[:1] == ["count"] else [json.dumps({"body": body})]
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": self.name}
        usage = {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 7 + len(tokens)}
        if not body.get("stream"):
            choice = {"index": 0, "text": "".join(tokens), "logprobs": None, "finish_reason": "length"}
            return web.json_response({**head, "choices": [choice], "usage": usage})
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        session = self._begin_session(body)
        for at, token in enumerate(tokens):
            finish = "abort" if self.sessions.get(session) else "length" if at == len(tokens) - 1 else None
            choice = {"index": 0, "text": token, "logprobs": None, "finish_reason": finish}
            await stream.write(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
            if finish == "abort":
                usage = {"prompt_tokens": 7, "completion_tokens": at + 1, "total_tokens": 8 + at}
                break
            await asyncio.sleep(float(words[2]) if words[:1] == ["count"] and len(words) > 2 else 0.0)
        self.sessions.pop(session, None)
        await stream.write(b"data: " + json.dumps({**head, "choices": [], "usage": usage}).encode() + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def encode(self, request: web.Request) -> web.Response:
        """LMDeploy's."""
        ids = [ord(letter) for letter in json.loads(await request.text())["input"]]
        return web.json_response({"input_ids": ids, "length": len(ids)})

    async def _call_tool(
        self, request: web.Request, body: dict, name: str, arguments: str = '{"city": "Oslo"}'
    ) -> web.StreamResponse:
        """Streams cut the arguments in two, as engines do."""
        call = {"id": "call_7", "type": "function", "function": {"name": name, "arguments": arguments}}
        if not body.get("stream"):
            whole = self._whole("", 3)
            whole["choices"][0] |= {"finish_reason": "tool_calls"}
            whole["choices"][0]["message"] |= {"content": None, "tool_calls": [call]}
            return web.json_response(whole)
        stream = await self._open(request)
        for piece in (
            {**call, "index": 0, "function": {"name": name, "arguments": ""}},
            {"index": 0, "function": {"arguments": arguments[:9]}},
            {"index": 0, "function": {"arguments": arguments[9:]}},
        ):
            await stream.write(self._chunk({"tool_calls": [piece]}))
        await stream.write(self._chunk({}, "tool_calls") + self._usage(3) + b"data: [DONE]\n\n")
        return stream

    async def _open(self, request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(self._chunk({"role": "assistant", "content": ""}))
        return stream

    def _whole(self, text: str, tokens: int) -> dict:
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
        }

    def _chunk(self, delta: dict, finish: str | None = None, log_prob: dict | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        if log_prob is not None:
            choice["logprobs"] = {"content": [log_prob]}
        return self._event({"choices": [choice]})

    def _usage(self, tokens: int) -> bytes:
        return self._event(
            {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}}
        )

    def _event(self, fields: dict) -> bytes:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.name}
        return b"data: " + json.dumps({**head, **fields}).encode() + b"\n\n"

    async def _fault(self, request: web.Request, body: dict, name: str, rest: list[str]) -> web.StreamResponse:
        if name == "die":
            print("fake engine: out of memory", flush=True)
            os._exit(3)
        if name == "hang":
            await asyncio.sleep(3600)
        if name == "reset":
            request.transport.abort()
            raise ConnectionResetError
        if name == "status":
            return web.json_response(ENVELOPE, status=int(rest[0]), headers={"retry-after": "7"})
        if name == "html":
            return web.Response(text=HTML, status=int(rest[0]), content_type="text/html")
        if name == "flat":
            return web.json_response(FLAT, status=400)
        if name == "flat200":
            return web.json_response(FLAT)
        if name == "detail":
            return web.json_response(
                {"detail": [{"loc": ["body", "n"], "msg": "too big", "input": "x" * 9}]}, status=422
            )
        if name == "text":
            return web.json_response({"error": "no such thing"}, status=400)
        if name == "broken-json":
            return web.Response(text='{"choices": [', content_type="application/json")
        if name == "long-error":
            return web.json_response({"error": {"message": "x" * 1_000_000}}, status=400)
        assert body.get("stream"), f"{name} is a fault of streams"
        if name == "first-event":
            stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await stream.prepare(request)
            await stream.write(b"data: " + json.dumps(ENVELOPE).encode() + b"\n\n")
            return stream
        stream = await self._open(request)
        await stream.write(self._chunk({"content": "half"}))
        if name == "linger":
            await stream.write(b"data: [DONE]\n\n")
            await asyncio.sleep(3600)
        if name == "mid-reset":
            await asyncio.sleep(0.05)
            request.transport.abort()
            raise ConnectionResetError
        if name == "mid-end":
            return stream
        if name == "mid-event":
            await stream.write(b"data: " + json.dumps(FLAT if rest else ENVELOPE).encode() + b"\n\n")
            return stream
        if name == "mid-half":
            await stream.write(self._chunk({"content": "NEVER SEEN"})[:-9])
            await asyncio.sleep(0.05)
            request.transport.abort()
            raise ConnectionResetError
        raise AssertionError(f"unknown fault {name}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="fake")
    parser.add_argument("--start-fault", action="store_true")
    parser.add_argument("--no-abort", action="store_true")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    given = parser.parse_args()
    if given.start_fault:
        sys.exit("fake engine: CUDA error: no device")
    print(f"fake engine: loading {given.model_dir}", flush=True)
    time.sleep(given.load_seconds)
    engine = FakeEngine(given.served_model_name)
    engine.aborts = not given.no_abort
    app = web.Application(client_max_size=128 * 1024 * 1024, handler_args={"auto_decompress": False})
    app.add_routes(
        [
            web.get("/v1/models", engine.models),
            web.get("/health", engine.health),
            web.get("/stats", engine.show_stats),
            web.get("/metrics", engine.metrics),
            web.post("/v1/chat/completions", engine.chat),
            web.post("/v1/completions", engine.complete),
            web.post("/v1/encode", engine.encode),
            web.post("/abort_request", engine.abort),
        ]
    )
    # `handler_cancellation` ends a handler when its client goes, which is what the stats count.
    web.run_app(app, host=given.host, port=given.port, print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
