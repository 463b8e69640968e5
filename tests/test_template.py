"""Every form of chat template, on tokenizers that cut text in different ways."""

import datetime

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cartridges.errors import InputError
from cartridges.pocket.tokenizer import CHAT_TEMPLATE, sample_texts
from cartridges.template import ChatFormat

QWEN3 = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set content, thought = m.content, '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
QWEN25 = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y %H:%M:%S.%f") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'+ m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
GEMMA3 = GEMMA.replace(
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "{% set first = '' %}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}",
).replace("+ message['content'] | trim", "+ (first if loop.first else '') + message['content'] | trim")
MISTRAL_LAST = """\
{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}
    {%- set messages = messages[1:] %}{%- endif %}
{{- bos_token }}
{%- for m in messages %}
    {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}{{- raise_exception("roles must alternate") }}{%- endif %}
    {%- if m.role == "user" and loop.last and system_message is defined %}
        {{- "[INST] " + system_message + "\\n\\n" + m.content + "[/INST]" }}
    {%- elif m.role == "user" %}{{- "[INST] " + m.content + "[/INST]" }}
    {%- else %}{{- " " + m.content + eos_token}}{%- endif %}
{%- endfor %}"""
MISTRAL_FIRST = MISTRAL_LAST.replace("loop.last and", "loop.first and")
LLAMA2 = (  # no system, and a space before the end of the reply
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = """\
{% for m in messages %}
{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GLM = (  # nothing but the next role's token ends a reply
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN = (  # no special token ends a reply, but one begins it; system messages are silently left out
    "{% for m in messages if m.role != 'system' %}{{ 'USER: ' if m.role == 'user' else '<bot>' }}{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)

CHATML_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADER_MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
TURN_MARKS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
INST_MARKS = ["<s>", "</s>", "[INST]", "[/INST]"]
GLM_MARKS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]

# name: template, special tokens, beginning, end of sequence, end of a turn, has a system role
FORMS = {
    "pocket": (CHAT_TEMPLATE, CHATML_MARKS, None, "<|im_end|>", "<|im_end|>", True),
    "qwen3": (QWEN3, CHATML_MARKS, None, "<|im_end|>", "<|im_end|>", True),
    "qwen2.5": (QWEN25, CHATML_MARKS, None, "<|endoftext|>", "<|im_end|>", True),
    "llama3": (LLAMA3, HEADER_MARKS, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", True),
    "gemma": (GEMMA, TURN_MARKS, "<bos>", "<eos>", "<end_of_turn>", False),
    "gemma3": (GEMMA3, TURN_MARKS, "<bos>", "<eos>", "<end_of_turn>", True),
    "mistral_last": (MISTRAL_LAST, INST_MARKS, "<s>", "</s>", "</s>", True),
    "mistral_first": (MISTRAL_FIRST, INST_MARKS, "<s>", "</s>", "</s>", True),
    "llama2": (LLAMA2, ["<s>", "</s>"], "<s>", "</s>", "</s>", False),
    "zephyr": (ZEPHYR, ["<s>", "</s>"], "<s>", "</s>", "</s>", True),
    "glm": (GLM, GLM_MARKS, None, "<|endoftext|>", "<|user|>", True),
    "plain": (PLAIN, ["</s>", "<bot>"], None, "</s>", None, False),
}
SPACE_BEHIND_REPLY = ("llama2", "plain")
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)
SYSTEM_TEXTS = ["", "Be brief.", "# Travel\n\nWho goes by train asks Kadi Bofu. \n", "3 rules:\n- a\n\n\n", "end ", "é"]
USER_TEXTS = [
    *"Who approves travel?~~ ~\n~\n\n\nwhat~ hi~   hi~\thi~\r\nhi~1~.~...~'s~\"~(a)~]~<~</s~<think>~#~```~|".split("~"),
    *"\u0301a~é~中文~🙂~\u200dx~\ufeffx~\u00a0x~user~er~INST~_~-~\\n~\x0b~\x00~Zz~the room~«a»".split("~"),
]


def unsplit_tokenizer():
    """Byte-fallback BPE as Gemma's and Llama 2's: nothing keeps tokens from spanning words and line breaks."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False)
    pieces = [text[at : at + 20] for text in sample_texts(5) for at in range(0, min(len(text), 2000), 20)]
    breaks = [f"a{n * chr(10)}b{n * ' '}c" for n in range(1, 5)] * 200
    bpe.train_from_iterator(["user\n", "user\n\n", *pieces, *breaks], trainer)
    return bpe


@pytest.fixture(scope="module")
def backends(tiny_tokenizer):
    unsplit = unsplit_tokenizer()
    metaspace = Tokenizer.from_str(unsplit.to_str())
    metaspace.normalizer = None
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return {
        "bytelevel": tiny_tokenizer.backend_tokenizer.to_str(),
        "unsplit": unsplit.to_str(),
        "metaspace": metaspace.to_str(),
    }


def make_tokenizer(backend: str, form: str):
    template, marks, bos, eos, _, _ = FORMS[form]
    named = {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    others = [mark for mark in marks if mark not in named.values()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend), **named, additional_special_tokens=others
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module", params=["bytelevel", "unsplit", "metaspace"])
def backend(request, backends):
    return backends[request.param]


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def chat(backend, form):
    return ChatFormat(make_tokenizer(backend, form), now=NOW)


def messages_of(*texts: str, system: str | None = None):
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return start + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def plain_prompt(chat: ChatFormat, messages):
    """By transformers alone, with the date pinned in its own way."""
    options = {"date_string": NOW.strftime("%d %b %Y %H:%M:%S.%f"), "enable_thinking": chat.thinking}
    return chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)


def encode(chat: ChatFormat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False).input_ids


def test_the_prompt_is_the_tokenizers_own(chat, form):
    chats = [messages_of("Hi"), messages_of("Hi", "Hello.", " And now?")]
    if FORMS[form][-1]:
        chats += [messages_of("Hi", system="Be brief."), messages_of("Hi", "Hello.", "And now?", system="Be brief.")]
    for messages in chats:
        assert chat.prompt(messages) == plain_prompt(chat, messages)
        assert all(type(index) is int for index in chat.prompt(messages))


def test_the_system_text_goes_in_front_of_the_first_user_message_where_there_is_no_system_role(chat, form):
    assert chat.has_system_role == FORMS[form][-1]
    if chat.has_system_role:
        return
    given, before = (messages_of("Hi", "Hello.", "And now?", system="Be brief.") for _ in range(2))
    assert chat.prompt(given) == plain_prompt(chat, messages_of("Be brief.\n\nHi", "Hello.", "And now?"))
    assert given == before
    assert chat.prompt(messages_of("Hi", system="")) == chat.prompt(messages_of("Hi"))


def test_a_system_prefix_begins_every_prompt_with_that_text_and_is_as_long_as_possible(chat):
    for system in SYSTEM_TEXTS:
        prefix = chat.system_prefix(system)
        prompts = [chat.prompt(messages_of(user, system=system)) for user in USER_TEXTS]
        for user, ids in zip(USER_TEXTS, prompts, strict=True):
            assert ids[: len(prefix)] == prefix, f"{system!r} {user!r}"
        num_common = next(n for n, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
        assert len(prefix) >= num_common - 1
        assert system.strip()[:-12] in chat.decode(prefix)


def token_id(chat: ChatFormat, token: str) -> int:
    return chat.tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_turn_goes_on_as_the_template_would_without_tokenizing_the_reply_again(chat, form, system):
    if form == "qwen3":  # the empty think block of thinking=False is stripped from earlier turns
        chat = ChatFormat(chat.tokenizer, thinking=True)
    first, moved = messages_of("Hi", system=system), form == "mistral_last" and system
    start, reply_text = chat.prompt(first), "Hello there."
    for next_user in USER_TEXTS:
        whole = messages_of("Hi", reply_text, next_user, system=system)
        expected = chat.prompt(whole[1:] if moved else whole)
        text = chat.tokenizer.decode(expected)
        head = encode(chat, text[: text.index(reply_text) + len(reply_text)])
        if form in SPACE_BEHIND_REPLY and expected[: len(head)] != head:  # which joined with the reply's last token
            behind = chat.turn(first, head[len(start) :], next_user)
            assert chat.tokenizer.decode(head) + chat.tokenizer.decode(behind) == text
            continue
        reply = head[len(chat.prompt(messages_of("Hi")) if moved else start) :]
        behind = chat.turn(first, reply, next_user)
        assert behind == expected[len(head) :]
        assert moved or start + reply + behind == expected


def test_an_end_is_not_doubled_and_is_supplied_where_the_reply_was_cut(chat, form):
    messages = messages_of("Hi", system="Be brief.")
    reply = encode(chat, "Hello there.")
    behind = chat.turn(messages, reply, "And now?")
    assert chat.decode(behind, with_special=True).count("And now?") == 1
    end = FORMS[form][4]
    if end is None:
        assert chat.stop_ids == {token_id(chat, FORMS[form][3])}
        return
    assert token_id(chat, end) in behind
    rest = chat.turn(messages, [*reply, token_id(chat, end)], "And now?")
    assert rest == behind[behind.index(token_id(chat, end)) + 1 :]
    assert chat.turn(messages, [], "And now?") == behind
    assert chat.turn(messages_of("Hi", "Hello.", "And now?"), [], "Then?") == chat.turn(messages_of("Hi"), [], "Then?")


def test_a_reply_that_looks_like_a_stand_in_changes_nothing(chat):
    for text in ("Replyq7", "Replyq7q", "Nextq7"):
        turned = chat.turn(messages_of(text), encode(chat, "Yes."), text)
        assert turned == chat.turn(messages_of("Hi"), encode(chat, "Yes."), text)


def test_stop_ids_are_the_end_of_sequence_and_the_end_of_a_turn(chat, form):
    ends = {FORMS[form][3], FORMS[form][4]} - {None}
    assert chat.stop_ids == {token_id(chat, end) for end in ends}


def test_the_context_head_stands_before_the_system_text(chat, form):
    head = chat.context_head()
    for text in ("Be brief.", "12"):
        ids = chat.prompt(messages_of("Hi", system=text))
        close = len(head) if ids[: len(head)] == head else len(head) - 1  # a space at the end joins with the text
        assert ids[:close] == head[:close]
        assert chat.tokenizer.decode(ids).startswith(chat.tokenizer.decode(head) + text)


@pytest.fixture
def qwen3(backends):
    return make_tokenizer(backends["bytelevel"], "qwen3")


def test_the_beginnings_that_are_known(qwen3):
    chat = ChatFormat(qwen3)
    assert chat.context_head() == [token_id(chat, "<|im_start|>"), *qwen3.encode("system\n")]
    assert (
        qwen3.decode(chat.system_prefix("Be brief.")) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    ), "the line break may join"


def test_the_thinking_switch(qwen3):
    quiet, thinking = ChatFormat(qwen3), ChatFormat(qwen3, thinking=True)
    messages = messages_of("Hi")
    block = qwen3.encode("<think>\n\n</think>\n\n")
    assert quiet.prompt(messages) == thinking.prompt(messages) + block
    assert quiet.turn(messages, [], "And?") == thinking.turn(messages, [], "And?") + block


def test_thoughts_of_earlier_turns_stay_in_the_ids_that_were_produced(qwen3):
    chat = ChatFormat(qwen3, thinking=True)
    reply = qwen3.encode("<think>\nHm.\n</think>\n\nHello.<|im_end|>")
    ids = chat.prompt(messages_of("Hi")) + reply + chat.turn(messages_of("Hi"), reply, "And?")
    stripped = chat.prompt(messages_of("Hi", "<think>\nHm.\n</think>\n\nHello.", "And?"))
    assert qwen3.decode(ids).replace("<think>\nHm.\n</think>\n\n", "") == qwen3.decode(stripped)
    assert qwen3.decode(ids).count("Hm.") == 1


def test_the_date_is_that_of_the_format(backends):
    tokenizer = make_tokenizer(backends["bytelevel"], "llama3")
    chat, messages = ChatFormat(tokenizer), messages_of("Hi")
    by_the_clock = [tokenizer.apply_chat_template(messages, return_dict=False) for _ in range(2)]
    assert by_the_clock[0] != by_the_clock[1], "the template writes microseconds"
    assert chat.prompt(messages) == chat.prompt(messages)
    assert chat.system_prefix("Be brief.") == chat.system_prefix("Be brief.")
    assert f"Today Date: {chat.now:%d %b %Y %H:%M:%S.%f}" in tokenizer.decode(chat.prompt(messages))
    assert ChatFormat(tokenizer, now=chat.now).prompt(messages) == chat.prompt(messages)


def test_decode(qwen3):
    chat = ChatFormat(qwen3)
    ids = qwen3.encode("It 's here , <|im_end|>")
    assert chat.decode(ids) == "It 's here , "
    assert chat.decode(ids, with_special=True) == "It 's here , <|im_end|>"


def test_the_digest(qwen3, tmp_path, backends):
    digest = ChatFormat(qwen3).digest
    qwen3.pad_token = "<|endoftext|>"
    used = ChatFormat(qwen3, thinking=True)
    qwen3(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert used.digest == digest, "use does not change it"
    qwen3.save_pretrained(tmp_path)
    assert ChatFormat(PreTrainedTokenizerFast.from_pretrained(tmp_path)).digest == digest
    others = [make_tokenizer(backends["unsplit"], "qwen3"), make_tokenizer(backends["bytelevel"], "qwen2.5")]
    assert len({digest, *(ChatFormat(other).digest for other in others)}) == 3


def refused(action, *given) -> str:
    with pytest.raises(InputError) as caught:
        action(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_without_a_template_is_refused(qwen3):
    qwen3.chat_template = None
    assert refused(ChatFormat, qwen3) == (
        "the tokenizer of TokenizersBackend has no chat template, or several and no default; expected that of a chat "
        "model; give an instruction-tuned model, or put its chat_template.jinja beside the tokenizer"
    ).replace("TokenizersBackend", type(qwen3).__name__)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("nothing", "leaves out messages; expected one that writes user and assistant messages in order"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "leaves out messages; expected one that"),
        ("{% for m in messages %}", "refuses messages of the roles user, assistant, user: Unexpected end of template"),
        ("{{ raise_exception('not today') }}", "refuses messages of the roles user, assistant, user: not today; give"),
    ],
)
def test_a_template_that_writes_no_chat_is_refused(qwen3, template, expected):
    qwen3.chat_template = template
    assert expected in refused(ChatFormat, qwen3)


def test_messages_that_cannot_be_written_are_refused(backends, qwen3):
    chat, gemma = ChatFormat(qwen3), ChatFormat(make_tokenizer(backends["bytelevel"], "gemma"))
    assert refused(chat.prompt, []) == "given no messages, expected at least one of a user"
    for wrong in ("Hi", {"role": "user"}, {"role": "user", "content": None}, {"role": 1, "content": ""}):
        expected = f"message 1 is {str(wrong)!r}; expected a dict with the texts 'role' and 'content'"
        assert refused(chat.prompt, [*messages_of("Hi"), wrong]) == expected
    assert "refuses messages of the roles assistant, user: Conversation roles must alternate" in refused(
        gemma.prompt, messages_of("a", "b", "c")[1:]
    )
    assert "has no system role; expected a user message behind the system message" in refused(
        gemma.prompt, messages_of(system="Be brief.")
    )
    assert refused(chat.turn, messages_of("Hi", "Hello."), [], "And?") == (
        "given messages that end with an assistant's, expected those that the reply answers"
    )
