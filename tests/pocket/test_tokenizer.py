import random
import re

import pytest

from cartridges.pocket.names import split_of
from cartridges.pocket.tokenizer import (
    CHAT_TEMPLATE,
    END,
    END_OF_TEXT,
    PAD,
    SPECIALS,
    START,
    in_syllables,
    sample_texts,
    train_tokenizer,
)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("special", SPECIALS)
def test_special_tokens_are_single(tiny_tokenizer, special):
    assert ids(tiny_tokenizer, f"a{special}b") == [
        *ids(tiny_tokenizer, "a"),
        SPECIALS.index(special),
        *ids(tiny_tokenizer, "b"),
    ]


def test_replies_end_at_the_end_token(tiny_tokenizer):
    assert (tiny_tokenizer.eos_token, tiny_tokenizer.pad_token) == (END, PAD)
    assert {START, END, PAD, END_OF_TEXT} <= set(tiny_tokenizer.all_special_tokens)


def test_digits_are_single(tiny_tokenizer):
    with_digits = [token for token in tiny_tokenizer.get_vocab() if re.search(r"\d", token)]
    assert sorted(with_digits) == list("0123456789")
    assert len(ids(tiny_tokenizer, "417")) == 3


def test_the_vocabulary_is_of_the_size_asked_for(tiny_tokenizer, tiny_config):
    assert len(tiny_tokenizer) == tiny_config.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n  \t x \r\n",
        "The room of Kadi Bofu is B-417.",
        "naïve café — “quotes” … ½",
        "e\u0301 \u00e9 \u200d \ufeff",
        "日本語 العربية עברית हिन्दी",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\x00\x01\x7f",
        "a , b . c ' s n't",
    ],
)
def test_text_comes_back(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(ids(tiny_tokenizer, text)) == text


def test_arbitrary_unicode_comes_back(tiny_tokenizer):
    rng = random.Random(0)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for _ in range(100):
        text = "".join(map(chr, rng.sample(points, 40)))
        assert tiny_tokenizer.decode(ids(tiny_tokenizer, text)) == text


def test_the_chat_template_writes_the_form_of_qwen(tiny_tokenizer):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": " U\n"}]
    written = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert written == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n U\n<|im_end|>\n<|im_start|>assistant\n"


def test_it_is_saved_whole(tiny_tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = f"{START}user\nWhat is 417?{END}\n👩‍👧"
    assert ids(loaded, text) == ids(tiny_tokenizer, text)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tiny_tokenizer.eos_token_id, tiny_tokenizer.pad_token_id)


def test_training_is_repeatable():
    first, second = (train_tokenizer(400, sample_texts(5)).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_texts_are_of_the_training_split():
    words = {word for text in sample_texts(10) for word in re.findall(r"\b[a-z]{2}0[a-z]{2,3}0", text.lower())}
    assert len(words) > 100
    assert {split_of(word.replace("0", "")) for word in words} == {"train"}


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Kadir takes vopol.", "Ka0dir0 takes vo0pol0."),
        ("kadir_gevu(x)", "ka0dir0_gevu(x)"),
        ("BofuError", "Bo0fu0Error"),
        ("Kadirs bofuz", "Kadirs bofuz"),
    ],
)
def test_invented_words_are_cut_at_their_syllables(text, cut):
    assert in_syllables(text, {"kadir", "bofu", "vopol", "B-417"}) == cut


def test_an_invented_word_never_seen_takes_few_tokens(tiny_tokenizer):
    assert len(ids(tiny_tokenizer, " zekudol")) <= 6


def test_the_letter_of_an_option_is_one_token_behind_its_value(tiny_tokenizer):
    with_letter, without = ids(tiny_tokenizer, "is depin (C)."), ids(tiny_tokenizer, "is depin")
    assert [tiny_tokenizer.decode([token]) for token in with_letter[len(without) :]] == [" (C)", "."]
    assert with_letter[: len(without)] == without
    assert tiny_tokenizer.decode(with_letter) == "is depin (C)."
