"""OpenAI's own client, as people use it."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

ASKED: Any = [{"role": "user", "content": "the little dog"}]


def chat(server: Any, **fields: Any) -> Any:
    """The reply to a short conversation."""
    given = {"model": "poet", "messages": ASKED, "temperature": 0, "max_tokens": 12, **fields}
    with server.openai as client:
        return client.chat.completions.create(**given)


def test_models_are_the_base_and_the_adapters(server: Any) -> None:
    with server.openai as client:
        cards = client.models.list().data
        assert [card.id for card in cards] == ["tiny", "judge", "pirate", "poet"]
        assert [card.parent for card in cards] == [None, "tiny", "tiny", "tiny"]
        assert client.models.retrieve("pirate").id == "pirate"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("parrot")


def test_no_path_of_the_machine_is_told(server: Any) -> None:
    roots = [str(folder) for folder in server.engine.library.roots.folders]
    for path in ("/v1/models", "/v1/adapters", "/lora-adapters"):
        assert not any(root in server.get(path).text for root in roots)


def test_adapters_answer_each_in_its_own_way(server: Any) -> None:
    replies = {name: chat(server, model=name) for name in ("tiny", "poet", "pirate", "judge")}
    texts = {reply.choices[0].message.content for reply in replies.values()}
    assert len(texts) == 4
    for name, reply in replies.items():
        assert reply.model == name
        assert reply.object == "chat.completion"
        assert reply.choices[0].finish_reason in ("stop", "length")
        assert reply.choices[0].message.role == "assistant"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert 1 <= reply.usage.completion_tokens <= 12


def test_names_of_one_adapter(server: Any) -> None:
    plain = chat(server).choices[0].message.content
    assert chat(server, model="tiny:poet").choices[0].message.content == plain
    assert chat(server, model="poet:1.0").choices[0].message.content == plain


def test_a_stack(server: Any) -> None:
    alone = {server.text(model=name) for name in ("tiny", "poet", "judge")}
    stacked = server.text(model="poet:0.7+judge:0.3")
    assert stacked not in alone
    assert server.write(model="poet:0.7+judge:0.3").headers["x-adapter-id"] == "poet:0.7+judge:0.3"
    assert server.text(model="poet:1+judge:0") == server.text(model="poet")


def test_a_stream_is_the_answer_in_pieces(server: Any) -> None:
    whole = chat(server, max_tokens=20)
    with server.openai as client:
        chunks = list(
            client.chat.completions.create(
                model="poet",
                messages=ASKED,
                temperature=0,
                max_tokens=20,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    *pieces, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in pieces if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert all(c.usage is None for c in pieces)
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_usage_counts_nothing(server: Any) -> None:
    with server.openai as client:
        chunks = list(
            client.completions.create(
                model="poet", prompt="the dog", max_tokens=4, temperature=0, stream=True
            )
        )
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert "".join(c.choices[0].text for c in chunks) == server.text(
        model="poet", prompt="the dog", max_tokens=4
    )


def test_many_at_once_get_what_they_get_alone(server: Any) -> None:
    names = ["tiny", "poet", "pirate", "judge"]
    alone = {name: server.text(model=name, max_tokens=24) for name in names}

    async def ask(client: AsyncOpenAI, name: str) -> str:
        reply = await client.completions.create(
            model=name, prompt="the little dog", temperature=0, max_tokens=24
        )
        return reply.choices[0].text

    async def everybody() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, name) for name in names * 6))

    assert asyncio.run(everybody()) == [alone[name] for name in names * 6]


def test_several_prompts_are_several_choices(server: Any) -> None:
    texts = ["the dog", "a red bird", "the sun"]
    with server.openai as client:
        reply = client.completions.create(model="judge", prompt=texts, temperature=0, max_tokens=5)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        alone = [server.text(model="judge", prompt=text, max_tokens=5) for text in texts]
        assert [choice.text for choice in reply.choices] == alone
        streamed = ["", "", ""]
        for chunk in client.completions.create(
            model="judge", prompt=texts, temperature=0, max_tokens=5, stream=True
        ):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == alone
        ids = [list(server.engine.text_ids(text)) for text in texts]
        reply = client.completions.create(model="judge", prompt=ids, temperature=0, max_tokens=5)
        assert [choice.text for choice in reply.choices] == alone
        reply = client.completions.create(model="judge", prompt=ids[1], temperature=0, max_tokens=5)
        assert [choice.text for choice in reply.choices] == alone[1:2]


def test_parts_of_text_are_one_text(server: Any) -> None:
    parts = [{"type": "text", "text": "the little"}, {"type": "text", "text": " dog"}]
    split = chat(server, messages=[{"role": "user", "content": parts}])
    assert split.choices[0].message.content == chat(server).choices[0].message.content
    with pytest.raises(
        openai.BadRequestError, match=r"messages\.0\.user\.content\.0: .*text only, not 'image_url'"
    ):
        chat(
            server, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        )


def test_seeds(server: Any) -> None:
    def draw(seed: int | None) -> str:
        return server.text(model="poet", temperature=1.5, seed=seed, max_tokens=24, ignore_eos=True)

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert len({draw(None) for _ in range(4)}) > 1
    assert server.text(temperature=2, top_k=1, seed=1) == server.text(temperature=0)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(server: Any) -> None:
    text = server.text(max_tokens=40, ignore_eos=True)
    stop = text[len(text) // 2 :][:2]
    reply = server.write(max_tokens=40, ignore_eos=True, stop=["nowhere to be seen", stop]).json()
    assert reply["choices"][0]["text"] == text[: text.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_probabilities_of_a_chat(server: Any) -> None:
    choice = chat(server, logprobs=True, top_logprobs=3, max_tokens=6).choices[0]
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "temperature 0 takes the likeliest"
    assert chat(server, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(server).choices[0].logprobs is None


def test_probabilities_of_a_text(server: Any) -> None:
    with server.openai as client:
        logprobs = (
            client.completions.create(model="poet", prompt="the dog", temperature=0, max_tokens=5, logprobs=2)
            .choices[0]
            .logprobs
        )
    count = len(logprobs.tokens)
    assert count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    assert logprobs.text_offset[0] == 0
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert max(top.values()) == pytest.approx(logprob)
        assert token in top


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"model": "parrot"}, openai.NotFoundError, "parrot"),
        ({"model": "tiny:parrot"}, openai.NotFoundError, "parrot"),
        ({"model": "poet:0.5+parrot:0.5"}, openai.NotFoundError, "parrot"),
        ({"model": "../tiny"}, openai.NotFoundError, "tiny"),
        ({"model": "poet:nan"}, openai.BadRequestError, "not finite"),
        ({"n": 2}, openai.BadRequestError, "n: this server can do 1 only"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"max_tokens": 0}, openai.UnprocessableEntityError, "max_tokens"),
        ({"stop": list("abcde")}, openai.BadRequestError, "stop: there are 5 stop texts; expected at most 4"),
        ({"stop": ""}, openai.BadRequestError, "stop has an empty text"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "Did you mean 'temperature'"),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, openai.BadRequestError, "tokens"),
        (
            {"messages": [{"role": "user", "content": None}]},
            openai.UnprocessableEntityError,
            "messages.0.user.content",
        ),
    ],
)
def test_mistakes_are_exceptions_of_the_client(
    server: Any, fields: dict[str, Any], kind: type[openai.APIStatusError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        chat(server, **fields)
    assert isinstance(caught.value.body, dict)
    assert {"message", "type", "param", "code"} == set(caught.value.body)
    assert caught.value.request_id


def test_an_unknown_model_is_named(server: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(server, model="parrot")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
