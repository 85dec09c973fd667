"""The clients that people use, and what they talk to: `openai`, `anthropic`, and a model server.

The SDKs bring their own HTTP client (httpx, or httpx2 since some version; the end of a test run
says which) and are given nothing but a TLS context: they verify the chain, and as an SVID has no
host name, none is compared. They never try again unless told to.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import h11
import openai

from tests.fake_backend import EchoBackend

MODEL = "library/qwen3:8b"
TEXT = "Good morning to you"
Call = Callable[[], str]


def openai_client(
    url: str, context: ssl.SSLContext | None = None, max_retries: int = 0
) -> openai.OpenAI:
    """OpenAI's SDK; without a context on plain HTTP."""
    # trust_env: a proxy of the machine that tests run on is none of ours.
    http = openai.DefaultHttpxClient(verify=context or False, trust_env=False)
    return openai.OpenAI(
        api_key="unused",
        base_url=f"{url}/v1",
        max_retries=max_retries,
        timeout=30,
        http_client=http,
    )


def anthropic_client(
    url: str, context: ssl.SSLContext | None = None, max_retries: int = 0
) -> anthropic.Anthropic:
    """Anthropic's SDK; without a context on plain HTTP."""
    http = anthropic.DefaultHttpxClient(verify=context or False, trust_env=False)
    return anthropic.Anthropic(
        api_key="unused", base_url=url, max_retries=max_retries, timeout=30, http_client=http
    )


def openai_calls(client: openai.OpenAI, prompt: str = "Hello") -> dict[str, Call]:
    """What is asked of it; each call gives the text that the model said."""

    def chat() -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}]
        )
        return answer.choices[0].message.content or ""

    def chat_stream() -> str:
        chunks = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def responses() -> str:
        return client.responses.create(model=MODEL, input=prompt).output_text

    def responses_stream() -> str:
        events = client.responses.create(model=MODEL, input=prompt, stream=True)
        return "".join(one.delta for one in events if one.type == "response.output_text.delta")

    return {
        "POST /v1/chat/completions": chat,
        "POST /v1/chat/completions, stream": chat_stream,
        "POST /v1/responses": responses,
        "POST /v1/responses, stream": responses_stream,
    }


def anthropic_calls(client: anthropic.Anthropic, prompt: str = "Hello") -> dict[str, Call]:
    """What is asked of it; each call gives the text that the model said."""

    def messages() -> str:
        answer = client.messages.create(
            model=MODEL, max_tokens=64, messages=[{"role": "user", "content": prompt}]
        )
        return "".join(block.text for block in answer.content if block.type == "text")

    def messages_stream() -> str:
        with client.messages.stream(
            model=MODEL, max_tokens=64, messages=[{"role": "user", "content": prompt}]
        ) as stream:
            return "".join(stream.text_stream)

    return {"POST /v1/messages": messages, "POST /v1/messages, stream": messages_stream}


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str  # without the query
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One answer; its parts are sent one by one, as they come."""

    status: int
    headers: list[tuple[str, str]]
    parts: Iterable[bytes]


class AnsweringServer(EchoBackend):
    """Speaks HTTP/1.1 and answers each request by a function; keeps what was asked."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        self._answer = answer
        super().__init__()
        self.url = f"http://{self.address}"

    def wait_until_asked(self, count: int, seconds: float = 20) -> None:
        """Wait until so many requests have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, seconds), self.asked

    def serve(self, sock: socket.socket) -> None:
        connection = h11.Connection(h11.SERVER)
        while connection.their_state is not h11.MUST_CLOSE:
            asked = _read(sock, connection)
            if asked is None:
                return
            with self.changed:
                self.asked.append(asked)
                self.changed.notify_all()
            answer = self._answer(asked)
            head = h11.Response(status_code=answer.status, headers=answer.headers)
            sock.sendall(connection.send(head) or b"")
            for part in answer.parts:
                sock.sendall(connection.send(h11.Data(part)) or b"")
            sock.sendall(connection.send(h11.EndOfMessage()) or b"")
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()


def _read(sock: socket.socket, connection: h11.Connection) -> Asked | None:
    """Read one request; None when the other side has ended."""
    head, body = None, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(sock.recv(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode() for name, value in head.headers}
            path = head.target.decode().partition("?")[0]
            return Asked(head.method.decode(), path, headers, bytes(body))
        else:
            return None


class ModelServer(AnsweringServer):
    """Answers as Ollama and vLLM do, in the dialect of the path.

    While `held`, an answer stops after its first part, and one without parts before its head.
    """

    def __init__(self) -> None:
        self._go_on = threading.Event()
        self._go_on.set()
        super().__init__(self._reply)

    def hold(self) -> None:
        """Stop answering in the middle."""
        self._go_on.clear()

    def go_on(self) -> None:
        """Go on, with what was held too."""
        self._go_on.set()

    def close(self) -> None:
        self._go_on.set()
        super().close()

    def _reply(self, asked: Asked) -> Answer:
        wants_stream = asked.body and json.loads(asked.body).get("stream")
        if wants_stream:
            parts = self._with_a_stop(_STREAMS[asked.path]())
            return Answer(200, [("Content-Type", "text/event-stream")], parts)
        self._go_on.wait(60)
        body = json.dumps(_ANSWERS[asked.path]).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return Answer(200, headers, [body])

    def _with_a_stop(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for number, part in enumerate(parts):
            if number == _FIRST_WORDS:
                self._go_on.wait(60)
            yield part


_FIRST_WORDS = 3  # parts of a stream after which a word has been said, in every dialect


def _event(data: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _words() -> list[str]:
    words = TEXT.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def _chat_chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    kind = "chat.completion.chunk"
    return _event({"id": "c", "object": kind, "created": 1, "model": MODEL, "choices": [choice]})


def _chat_stream() -> Iterator[bytes]:
    yield _chat_chunk({"role": "assistant"})
    for word in _words():
        yield _chat_chunk({"content": word})
    yield _chat_chunk({}, "stop")
    yield b"data: [DONE]\n\n"


def _responses_stream() -> Iterator[bytes]:
    number = 0
    for word in _words():
        place = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
        kind = "response.output_text.delta"
        yield _event({"type": kind, "sequence_number": number, "delta": word, **place}, kind)
        number += 1
    kind = "response.completed"
    yield _event({"type": kind, "sequence_number": number, "response": _RESPONSE}, kind)


def _messages_stream() -> Iterator[bytes]:
    start: dict[str, Any] = {**_MESSAGE, "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
    ]
    for word in _words():
        delta = {"type": "text_delta", "text": word}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    events.append({"type": "content_block_stop", "index": 0})
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": 4}})
    events.append({"type": "message_stop"})
    for event in events:
        yield _event(event, event["type"])


_COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "finish_reason": "stop",
        }
    ],
}
_RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": MODEL,
    "output": [
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
_MESSAGE: dict[str, Any] = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 4},
}
_MODELS = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "library"}],
}
_ANSWERS = {
    "/v1/models": _MODELS,
    "/v1/chat/completions": _COMPLETION,
    "/v1/responses": _RESPONSE,
    "/v1/messages": _MESSAGE,
}
_STREAMS = {
    "/v1/chat/completions": _chat_stream,
    "/v1/responses": _responses_stream,
    "/v1/messages": _messages_stream,
}
