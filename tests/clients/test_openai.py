"""A stream of a chat, byte by byte as servers send it."""

import json

import httpx
import pytest

from cartridges.clients.openai import stream_chat

TEXTS = ["naïve\u2028", "\u0085 🙂\x1c\u2029", "", "中文\r\n"]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_text_with_ends_of_lines_comes_whole_however_it_is_cut(monkeypatch, end, size):
    events = [json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False) for text in TEXTS]
    raw = b"".join(b"data: " + event.encode() + end for event in [*events, "[DONE]"])
    parts = [raw[start : start + size] for start in range(0, len(raw), size)]
    client, transport = httpx.Client, httpx.MockTransport(lambda request: httpx.Response(200, content=iter(parts)))
    monkeypatch.setattr(httpx, "Client", lambda **options: client(**options, transport=transport))
    pieces = list(stream_chat("http://server", [{"role": "user", "content": "Hello"}], "m"))
    assert pieces == [text for text in TEXTS if text]
