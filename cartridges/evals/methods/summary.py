"""A summary by the same model, as long as the budget allows, read in place of the corpus."""

from cartridges.chunking import ChunkConfig, Chunker
from cartridges.engine.request import Request
from cartridges.evals.method import Answerer, Workshop
from cartridges.rng import rng_of
from cartridges.seeds import load_seeds

PROMPT = (
    "Summarise the text above in at most {num_words} words. Keep every name, number and date that someone may ask for; "
    "write no introduction."
)
WORDS_PER_TOKEN = 0.6


def summary(workshop: Workshop) -> Answerer:
    """Each piece summarised in its share of the budget; what is too long together is cut.

    The bundled model knows summaries of one thing only: there, it asks itself for them about each piece, as in
    self-study, and the answers are put together.
    """
    engine = workshop.engine
    budget = max(0, min(workshop.text_room(), workshop.room))
    piece_len = max(64, min(workshop.room // 2, 2048 if engine.model.profile != "pocket" else 400))
    config = ChunkConfig(kind="structure", min_len=piece_len // 4, max_len=piece_len)
    pieces = [chunk.text for chunk in Chunker(workshop.corpus, config, engine.model.tokenizer).cover()]
    share = max(8, budget // len(pieces))
    if engine.model.profile == "pocket":
        told = _asked_for(workshop, pieces)
    else:
        asked = [(piece, PROMPT.format(num_words=max(8, round(share * WORDS_PER_TOKEN)))) for piece in pieces]
        told = _replies(workshop, asked, share)
    text = workshop.first_tokens("\n".join(dict.fromkeys(told)), budget)
    return Answerer(lambda item: text)


def _asked_for(workshop: Workshop, pieces: list[str], num_each: int = 4) -> list[str]:
    """Answers to messages that ask for summaries, `num_each` a piece, by turns over the pieces."""
    prompts = load_seeds("pocket").kinds["summarization"]
    rng = rng_of("summary")
    asked = [(piece, rng.choice(prompts)) for _ in range(num_each) for piece in pieces]
    messages = _replies(workshop, asked, 96, temperature=1.0)
    return _replies(workshop, [(piece, message) for (piece, _), message in zip(asked, messages, strict=True)], 160)


def _replies(workshop: Workshop, asked: list[tuple[str, str]], num_new: int, temperature: float = 0.0) -> list[str]:
    chat = workshop.engine.model.chat
    requests = [
        Request(
            tuple(chat.prompt([{"role": "system", "content": piece}, {"role": "user", "content": text}])),
            num_new,
            temperature,
            seed=number,
        )
        for number, (piece, text) in enumerate(asked)
    ]
    return [result.text for result in workshop.engine.generate(requests)]
