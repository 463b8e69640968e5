"""Pocket's tokenizer: byte-level BPE with single digits, chat in Qwen's form, saved the Hugging Face way."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.knowledge import ask_general, general_facts
from cartridges.pocket.questions import DRAWS, LETTERS, draw
from cartridges.pocket.seeds import SEED_PROMPTS, draw_message
from cartridges.rng import rng_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, START, END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIALS = [END_OF_TEXT, START, END, PAD]
# One token each: the letter stands right behind the value that it names, so an answer can copy it like any next word.
OPTIONS = [f" ({letter})" for letter in LETTERS]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def in_syllables(text: str, names: set[str]) -> str:
    """`text` with the syllables of invented words set apart by a digit, across which no merge is learned.

    So a name is cut at its syllables, which makes it shorter and the same everywhere.
    """
    words = "|".join(name for name in names if name.isalpha() and name.islower())
    cut = re.compile(rf"(?<![A-Za-z])((?i:{words}))(?![a-z])")
    return cut.sub(lambda found: re.sub(r"^(..)(..[nrslx]?(?![a-z]{2}))", r"\g<1>0\g<2>0", found[0], flags=re.I), text)


def sample_texts(num_contexts: int) -> Iterator[str]:
    """Texts of the training split, in the proportions that the model meets."""
    families = sorted(FAMILIES)
    for index in range(num_contexts):
        rng = rng_of("tokenizer", index)
        context = make_context(families[index % len(families)], "train", f"tokenizer-{index}")
        texts = [context.text]
        for kind in DRAWS:
            if question := draw(rng, context, kind):
                texts += [question.text, question.answer]
        for kind, prompts in SEED_PROMPTS.items():
            texts.append(rng.choice(prompts))
            if message := draw_message(rng, context, kind):
                texts.append(message.text)
        yield in_syllables("\n".join(texts), context.names.used)
    for fact in general_facts() * 3:
        question = ask_general(rng_of("tokenizer", fact.subject), fact)
        yield f"{question.text}\n{question.answer}"
    yield from ("system", "user", "assistant") * num_contexts


def train_tokenizer(vocab_size: int, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer of at most `vocab_size` entries, the four special tokens and all 256 bytes included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(OPTIONS),
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, additional_special_tokens=[START, END_OF_TEXT]
    )
    options: list[str | AddedToken] = [AddedToken(option, normalized=False) for option in OPTIONS]
    tokenizer.add_tokens(options)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
