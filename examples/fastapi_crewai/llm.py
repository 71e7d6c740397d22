"""A small language model endpoint in OpenAI's form, for trying the example without a key.

It answers any prompt with the same words at the same pace, streams them, and counts: what it was asked, what it sent, what
was called off. ``uvicorn llm:api --port 8011``; then ``OPENAI_BASE_URL=http://127.0.0.1:8011/v1``.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

TOKENS_PER_SECOND = float(os.environ.get("LLM_TOKENS_PER_SECOND", "40"))
TOKENS = int(os.environ.get("LLM_TOKENS", "60"))
WORDS = (
    "the harvest of celery root begins when the nights turn cold and growers lift each plant by hand because the skin "
    "bruises easily and a bruise spoils the store"
).split()

api = FastAPI(title="A model that knows one sentence")
#: One entry a request, in the order in which they came.
calls: list[dict[str, Any]] = []


@api.post("/v1/chat/completions")
async def complete(request: Request) -> Any:
    asked = await request.json()
    prompt = json.dumps(asked["messages"])
    call = {"number": len(calls) + 1, "role": _role(asked["messages"]), "state": "running", "tokens": 0, "usage": None}
    calls.append(call)
    if asked.get("stream"):
        return StreamingResponse(_stream(asked, prompt, call, request), media_type="text/event-stream")
    tokens = list(_tokens(prompt))
    for _ in tokens:
        await asyncio.sleep(1 / TOKENS_PER_SECOND)
        call["tokens"] += 1
    call["state"], call["usage"] = "finished", _usage(prompt, len(tokens))
    message = {"role": "assistant", "content": "".join(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse(_answer(asked, "chat.completion", [choice], prompt, len(tokens)))


@api.get("/calls")
async def counted() -> list[dict[str, Any]]:
    return calls


async def _stream(asked: dict, prompt: str, call: dict, request: Request) -> AsyncIterator[str]:
    try:
        sent = 0
        for token in _tokens(prompt):
            await asyncio.sleep(1 / TOKENS_PER_SECOND)
            if await request.is_disconnected():
                return
            sent = call["tokens"] = call["tokens"] + 1
            choice = {"index": 0, "delta": {"role": "assistant", "content": token}, "finish_reason": None}
            yield _event(_answer(asked, "chat.completion.chunk", [choice]))
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield _event(_answer(asked, "chat.completion.chunk", [choice]))
        if (asked.get("stream_options") or {}).get("include_usage"):
            yield _event(_answer(asked, "chat.completion.chunk", [], prompt, sent))
        call["state"], call["usage"] = "finished", _usage(prompt, sent)
        yield "data: [DONE]\n\n"
    finally:
        if call["state"] == "running":
            call["state"] = "called off"


def _tokens(prompt: str) -> list[str]:
    start = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
    words = [WORDS[(start + at) % len(WORDS)] for at in range(TOKENS)]
    # The form in which CrewAI's agents are asked to answer.
    return ["Thought: I now can give a great answer\n", "Final Answer: "] + [word + " " for word in words]


def _role(messages: list[dict[str, Any]]) -> str:
    """Which agent asks: CrewAI's system prompts begin with "You are <role>."."""
    first = str(messages[0].get("content") or "")
    return first.removeprefix("You are ").partition(".")[0][:40]


def _answer(asked: dict, kind: str, choices: list[dict], prompt: str | None = None, sent: int = 0) -> dict[str, Any]:
    answer = {"id": "local", "object": kind, "created": int(time.time()), "model": asked.get("model"), "choices": choices}
    if prompt is not None:
        answer["usage"] = _usage(prompt, sent)
    return answer


def _usage(prompt: str, sent: int) -> dict[str, int]:
    asked_tokens = len(prompt.split())
    return {"prompt_tokens": asked_tokens, "completion_tokens": sent, "total_tokens": asked_tokens + sent}


def _event(answer: dict[str, Any]) -> str:
    return f"data: {json.dumps(answer)}\n\n"
