"""Clients that nobody here wrote: the official `openai` package, sync and async, and LangChain's."""

import asyncio

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from cartridges.serving.settings import Keys
from tests.serving.place import API_KEY, running

BEDS = [{"role": "user", "content": "How many beds?"}]


@pytest.fixture(scope="module")
def guarded(served_model, cartridges):
    """A server that asks for a key."""
    with running(served_model, cartridges, Keys((API_KEY,))) as server:
        yield server
        server.settle()


@pytest.fixture
def client(guarded):
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def test_openai_lists_and_asks(client):
    assert {model.id for model in client.models.list()} == {"tiny-qwen3", "ward", "firm"}
    assert client.models.retrieve("ward").owned_by == "cartridges"
    reply = client.chat.completions.create(
        model="ward", messages=BEDS, max_completion_tokens=8, temperature=0, logprobs=True, top_logprobs=2, n=2
    )
    first, second = reply.choices
    assert first.message.content == second.message.content and first.finish_reason in ("stop", "length")
    assert first.logprobs and first.logprobs.content and len(first.logprobs.content[0].top_logprobs) == 2
    assert reply.usage and reply.usage.prompt_tokens_details
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    both = client.chat.completions.create(
        model="tiny-qwen3", messages=BEDS, max_tokens=8, temperature=0, extra_body={"cartridges": ["ward", "firm"]}
    )
    by_name = client.chat.completions.create(model="ward+firm", messages=BEDS, max_tokens=8, temperature=0)
    assert both.choices[0].message.content == by_name.choices[0].message.content


def test_openai_streams(client):
    asked = {"model": "ward", "messages": BEDS, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces, usage = [], None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == whole and usage and usage.completion_tokens <= 12
    with client.chat.completions.stream(**asked) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == whole


def test_openai_completes_a_text(client):
    reply = client.completions.create(model="firm", prompt=["The firm", "A town"], max_tokens=4, logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[0].logprobs and len(reply.choices[0].logprobs.tokens) <= 4


def test_openai_knows_the_errors(client, guarded):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=BEDS)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="ward", messages=BEDS, tools=[{"type": "function"}])
    with pytest.raises(openai.AuthenticationError, match="a wrong API key"):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="another").models.list()


def test_openai_asks_many_at_once(guarded):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key=API_KEY, max_retries=0) as client:

            async def ask(name, stream):
                asked = {"model": name, "messages": BEDS, "max_tokens": 10, "temperature": 0}
                if not stream:
                    return (await client.chat.completions.create(**asked)).choices[0].message.content
                chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
                return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

            names = ["tiny-qwen3", "ward", "firm", "ward+firm"] * 4
            return await asyncio.gather(*(ask(name, place % 8 < 4) for place, name in enumerate(names)))

    replies = asyncio.run(ask_all())
    assert replies[:4] * 4 == replies
    assert len(set(replies)) == 4


def test_langchain_asks_and_streams(guarded):
    chat = ChatOpenAI(
        model="ward",
        base_url=f"{guarded.url}/v1",
        api_key=SecretStr(API_KEY),
        temperature=0,
        max_tokens=8,
        max_retries=0,
    )
    messages = [SystemMessage("Be brief."), HumanMessage("How many beds?")]
    whole = chat.invoke(messages)
    assert isinstance(whole.content, str) and whole.content
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"] <= 8
    assert "".join(str(chunk.content) for chunk in chat.stream(messages)) == whole.content
    assert asyncio.run(chat.ainvoke(messages)).content == whole.content
    assert chat.batch([messages] * 3)[2].content == whole.content
    told = chat.bind(logprobs=True, top_logprobs=2).invoke(messages).response_metadata["logprobs"]
    assert len(told["content"][0]["top_logprobs"]) == 2
