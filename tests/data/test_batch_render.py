"""Proves that the fast way from conversations to tokens is the plain way: same texts, same tokens, same examples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base.templates import TEMPLATES
from tunesmith.data import batch_render
from tunesmith.data.batch_render import CHUNK, BatchRenderer, TracedTemplate
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.render import Renderer, render_text
from tunesmith.data.token_cache import TokenCache
from tunesmith.data.trace import POISON, Tracer, Untraceable
from tunesmith.errors import DataError, RowError

# What templates look for in contents, at their edges and inside, and what might be taken for something else.
CONTENT = st.lists(
    st.sampled_from(
        [
            " ",
            "\n",
            "a",
            "Hello",
            "Größe",
            "</think>",
            "<think>",
            "%s",
            "{}",
            "{{ x }}",
            '"',
            "\\",
            "'",
            "12",
            POISON,
            "\u200b",
            "名前",
            "|",
        ]
    ),
    max_size=6,
).map("".join)


def _talk(roles, contents, where="row 1"):
    return Conversation(tuple(Message(role, content) for role, content in zip(roles, contents)), where)


@st.composite
def _talks(draw):
    roles = draw(st.sampled_from([("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2]))
    return _talk(roles, [draw(CONTENT) for _ in roles])


THINKING = (
    "{%- for m in messages %}{%- set text = m.content | trim %}{%- if m.role == 'assistant' and '</think>' in text %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MACRO = (
    "{% macro show(text) %}{{ text ~ '' }}{% endmacro %}{% for m in messages %}{% set said = show(m['content']) %}"
    "<|im_start|>{{ m['role'] }}\n{% if said.startswith('<think>') or not said %}!{% endif %}{{ said.strip() }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN = "{% for m in messages %}<|im_start|>", "<|im_end|>{% endfor %}"
ODD = {
    "thinking": THINKING,
    "macro": MACRO,
    "upper": "{{ m.content | upper }}".join(TURN),
    "first letter": "{{ m.content[:1] }}{{ m.content }}".join(TURN),
    "json": "{{ m.content | tojson }}".join(TURN),
    "length": "{{ m.content | length }}".join(TURN),
    "format": "{{ '%s!' | format(m.content) }}".join(TURN),
    "compared": "{{ 1 if m.content == messages[0].content else 2 }}{{ m.content }}".join(TURN),
    "generation": "{% generation %}{{ m.content }}{% endgeneration %}".join(TURN),
    "captured": "{% set t %}{{ m.content }}{% endset %}{{ t | trim }}{{ 'a' in t }}".join(TURN),
    "searched": "{{ 1 if m.content in 'Hello a' else 2 }}".join(TURN),
    "looked for": "{{ 'Hello a'.find(m.content) }}".join(TURN),
    "replaced": "{{ 'Hello a' | replace(m.content, 'b') }}".join(TURN),
    "defaulted": "{{ m.nothing | default(m.content) }}".join(TURN),
    "joined": "{{ [m.role, m.content] | join(': ') }}".join(TURN),
    "membership": "{{ 1 if m.content in ['a', 'Hello'] else 2 }}".join(TURN),
}


class _Turns:
    """As much of `Turns` as a traced template needs, for templates that make no prompts."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def text(self, messages, *, prompt):
        return render_text(self.tokenizer, messages, prompt)


@pytest.mark.parametrize("name", [*ODD, *TEMPLATES])
def test_a_traced_text_is_the_templates_own(name, tokenizer_with):
    tokenizer = tokenizer_with(ODD.get(name) or TEMPLATES[name])
    traced = TracedTemplate(_Turns(tokenizer))

    @settings(max_examples=60, deadline=None)
    @given(talk=_talks(), prompt=st.booleans())
    def check(talk, prompt):
        text = traced.text(talk.as_dicts(), prompt)
        assert text is None or text == render_text(tokenizer, talk.as_dicts(), prompt)

    check()


@pytest.mark.parametrize("name", [*TEMPLATES, "thinking", "macro", "generation", "captured"])
def test_known_templates_are_traced(name, tokenizer_with):
    tokenizer = tokenizer_with(ODD.get(name) or TEMPLATES[name])
    assert TracedTemplate(_Turns(tokenizer)).text(_talk(("user", "assistant"), ["b", "c"]).as_dicts(), False) is not None


@pytest.mark.parametrize("name", ["upper", "first letter", "json", "length", "format", "searched", "looked for", "replaced"])
def test_what_a_trace_cannot_follow_has_none(name):
    with pytest.raises(Untraceable):
        Tracer(ODD[name], {}).trace(("user",), ("a",), False)


@pytest.mark.parametrize("asked", ["content | int > 9", "content | float > 9", "content | wordcount > 2"])
def test_what_reads_a_content_without_asking_it_has_no_trace(asked, tokenizer_with):
    template = TEMPLATES["chatml"].replace(
        "{{ message['content'] }}", f"{{% if message.{asked} %}}many {{% endif %}}{{{{ message.content }}}}"
    )
    turns = _Turns(tokenizer_with(template))
    traced = TracedTemplate(turns)
    for contents in (["1", "a"], ["10", "a b c"]):
        messages = _talk(("user", "assistant"), contents).as_dicts()
        assert traced.text(messages, False) in (None, turns.text(messages, prompt=False))


def test_a_trace_holds_only_where_the_template_would_be_told_the_same():
    trace = Tracer(THINKING, {}).trace(("user", "assistant"), ("a", "b"), False)
    assert trace.text(("c", " d ")) == "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
    assert trace.text(("c", "<think>e</think>d")) is None


TEXT = st.lists(
    st.sampled_from(
        [
            "<|im_start|>",
            "<|im_end|>",
            "<|endoftext|>",
            "<s>",
            "</s>",
            "<bos>",
            "[INST]",
            " ",
            "\n",
            "user",
            "The Force",
            "é",
            "1 2",
            "<|im",
        ]
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("family", ["chatml", "llama3", "phi3", "gemma", "mistral", "zephyr", "alpaca"])
def test_tokens_of_pieces_are_those_of_the_whole(family, tokenizer_of):
    tokenizer = tokenizer_of(family)
    cache = TokenCache(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(texts=st.lists(TEXT, max_size=5))
    def check(texts):
        assert cache.encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    check()


@pytest.mark.parametrize("odd", ["lstrip", "rstrip", "single_word"])
def test_a_token_that_looks_at_what_stands_beside_it_forbids_pieces(odd, tokenizer_with):
    from tokenizers import AddedToken

    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|odd|>", **{odd: True}, special=True)]})
    texts = ["a <|odd|> b", "a<|odd|>b<|im_end|> c"]
    assert TokenCache(tokenizer).encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_a_space_put_before_the_first_word_only_forbids_pieces(tokenizer_with):
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    texts = ["a<|im_end|>b", "<|im_start|>a b"]
    assert TokenCache(tokenizer).encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _made(renderer, talks):
    """Examples, or what is wrong with the first bad row."""
    try:
        return renderer.examples(talks)
    except DataError as error:
        return error.what


@pytest.mark.parametrize("assistant_only", [True, False])
@pytest.mark.parametrize("family", ["chatml", "llama3", "phi3", "gemma", "mistral", "zephyr", "alpaca"])
def test_examples_are_those_of_the_plain_renderer(family, assistant_only, renderer_of):
    plain = renderer_of(family, assistant_only)
    fast = BatchRenderer.like(plain)

    @settings(max_examples=40, deadline=None)
    @given(talks=st.lists(_talks(), max_size=4))
    def check(talks):
        assert _made(fast, talks) == _made(plain, talks)

    check()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_examples_keep_their_order_over_chunks_and_threads_and_bad_rows_are_told_in_theirs(threads, renderer_of, monkeypatch):
    monkeypatch.setattr(batch_render, "THREADS", threads)
    talks = [_talk(("user", "assistant"), (f"q{n}", f"a{n}"), f"row {n}") for n in range(2 * CHUNK + 5)]
    for number in (7, CHUNK + 1):
        talks[number] = _talk(("assistant", "user"), ("a", "b"), f"row {number}")
    plain_errors, fast_errors = [], []
    plain = renderer_of("chatml").examples(talks, bad=plain_errors.append)
    done = []
    fast = BatchRenderer.like(renderer_of("chatml")).examples(talks, done.append, bad=fast_errors.append)
    assert fast == plain
    assert [error.what for error in fast_errors] == [error.what for error in plain_errors]
    assert len(fast_errors) == 2
    assert done[-1] == len(talks)
    with pytest.raises(RowError, match="row 7"):
        BatchRenderer.like(renderer_of("chatml")).examples(talks)


def test_no_conversation_makes_no_example(renderer_of):
    assert BatchRenderer.like(renderer_of("chatml")).examples([]) == []


def test_control_tokens_that_were_typed_stay_text(renderer_of):
    plain: Renderer = renderer_of("chatml")
    talks = [_talk(("user", "assistant"), ("say <|im_end|>", "no")), _talk(("user", "assistant"), ("b", "c"))]
    assert BatchRenderer.like(plain).examples(talks) == plain.examples(talks)


@pytest.mark.parametrize(
    ("family", "planned"), [("chatml", True), ("llama3", True), ("phi3", True), ("gemma", True), ("alpaca", False)]
)
def test_answers_are_known_from_the_shape_where_control_tokens_stand_around_them(family, planned, renderer_of):
    fast = BatchRenderer.like(renderer_of(family))
    talks = [_talk(("user", "assistant") * n, ("b c", "d e") * n) for n in (1, 2)]
    assert [example is not None for example in fast._planned.examples(talks)] == [planned] * 2


def test_an_answer_that_melts_into_its_head_is_left_to_the_renderer(renderer_of):
    fast = BatchRenderer.like(renderer_of("chatml"))
    plain, melting = (_talk(("user", "assistant"), ("b", answer)) for answer in ("c", "\n\n    return"))
    found = fast._planned.examples([plain, melting])
    assert found[0] is not None
    assert found[1] is None
    assert fast.examples([plain, melting]) == renderer_of("chatml").examples([plain, melting])


def test_answers_that_are_not_to_be_trained_and_calls_of_tools_are_left_to_the_renderer(renderer_of):
    fast = BatchRenderer.like(renderer_of("chatml"))
    said = _talk(("user", "assistant") * 2, ("a", "b", "c", "d"))
    unlearnt = Conversation((*said.messages[:1], Message("assistant", "b", train=False), *said.messages[2:]), "row 1")
    typed = _talk(("user", "assistant"), ("a <|im_end|>", "b"))
    assert fast._planned.examples([said, unlearnt, typed])[1:] == [None, None]
    assert fast.examples([said, unlearnt, typed]) == renderer_of("chatml").examples([said, unlearnt, typed])
