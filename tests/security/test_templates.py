# ruff: noqa: E501, PT017, RUF043 (tables of hostile input, and errors looked at where they are caught)
"""Proves that a chat template that came with a model can neither leave its sandbox, nor run on, nor fill the memory, and that
an honest one gives what transformers makes of it."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.base.templates import TEMPLATES
from tunesmith.data.sandbox import LONGEST_TEMPLATE, Overdrawn, Sandbox, render
from tunesmith.data.template import render_text
from tunesmith.errors import ModelError

ASKED = [{"role": "user", "content": "What is the wind?"}]
TALK = [
    {"role": "user", "content": "Wo?\n"}, {"role": "assistant", "content": " Dort: é {{ 7 }}.", "reasoning": "Hm."},
    {"role": "user", "content": ""}, {"role": "assistant", "content": "Ja."},
]  # fmt: skip

GREEDY = {
    "loop": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over contents": "{% set t = messages[0].content * 50 %}" + "{% for c in t %}" * 5 + "{% endfor %}" * 5,
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 40 }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "giant text": "{{ 'a' * 10**10 }}",
    "nested products": "{{ ((('a' * 9999) * 9999) * 9999) * 9999 }}",
    "product the other way": "{{ 10**10 * 'a' }}",
    "giant list": "{{ ([1] * 10**10) | length }}",
    "giant number": "{{ 10 ** (10 ** 10) }}",
    "doubled sum": "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "doubled join": "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "doubled block": "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t %}{{ n.t }}{{ n.t }}{% endset %}{% endfor %}",
    "much written": "{% set t = 'a' * 9999 %}{% for i in range(99999) %}{{ t }}{% endfor %}",
    "replaced": "{% set t = 'a' * 9999 %}{{ t.replace('a', t).replace('a', t) }}",
    "replaced by a filter": "{% set t = 'a' * 9999 %}{{ t | replace('a', t) | replace('', t) }}",
    "joined": "{% set t = 'a' * 99999 %}{{ t.join(range(9999) | map('string')) }}",
    "joined by a filter": "{{ range(99999) | join('a' * 99999) }}",
    "centred": "{{ 'a' | center(10**10) }}",
    "padded": "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ '\\t'.expandtabs(10**9) }}",
    "indented": "{{ ('\\n' * 9999) | indent('a' * 9999) }}",
    "wide field": "{{ '%10000000000d' % 1 }}",
    "wide field by star": "{{ '%*d' % (10**10, 1) }}",
    "wide format": "{{ '{:>10000000000}'.format('a') }}",
    "wide format from an argument": "{{ '{:{}}'.format('a', 10**10) }}",
    "format filter": "{{ '%10000000000s' | format('a') }}",
    "many fields": "{% set t = 'a' * 99999 %}{{ ('%s' * 999) % ((t,) * 999) }}",
    "tower of lists": "{% set n = namespace(t=['a']) %}{% for i in range(60) %}{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.t }}",
    "tower of tuples": "{% set n = namespace(t=(1,)) %}{% for i in range(60) %}{% set n.t = (n.t, n.t) %}{% endfor %}{{ {n.t: 1} }}",
    "tower of objects": "{% set n = namespace(t={}) %}{% for i in range(60) %}{% set n.t = dict(a=n.t, b=n.t) %}{% endfor %}",
    "tower as JSON": "{% set n = namespace(t=[1]) %}{% for i in range(900) %}{% set n.t = [n.t] %}{% endfor %}{{ n.t|tojson(indent=9) }}",
    "rounded": "{{ 1.5 | round(10**9, 'ceil') }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "slices": "{% set n = namespace(l=[]) %}{% set t = 'a' * 99999 %}{% for i in range(9999) %}{% set n.l = n.l + [t[1:]] %}{% endfor %}",
    "bytes": "{{ 1.to_bytes(10**10, 'big') }}{{ (1).to_bytes(10**10, 'big') }}",
    "a long template": "{{ 'a' }}" * LONGEST_TEMPLATE,
    "a deep template": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "not at first": "{% if messages | length > 1 %}{% for i in range(10**9) %}{% endfor %}{% endif %}a",
}  # fmt: skip

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') | attr('__mro__') }}",
    "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set n = namespace(__class__=1) %}{{ n }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ dict.__init__ }}{{ dict.mro() }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__}' | format)('') }}",
    "{{ lipsum.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ range.__self__ }}{{ (range|attr('__class__')) }}",
]

RUN = """
import json, resource, sys, time
import tunesmith.data.sandbox as sandbox
talk = [{"role": "user", "content": "What is the wind?"}, {"role": "assistant", "content": "Air."}]
sandbox.render("{{ messages[0].content }}", talk)
told = {}
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 128 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for name, template in json.load(sys.stdin).items():
    begun = time.process_time()
    try:
        sandbox.render(template, talk)
        said = "nothing"
    except Exception as error:
        said = "MemoryError" if isinstance(error, MemoryError) else "refused"
    told[name] = [said, time.process_time() - begun]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, list[Any]]:
    """What became of each greedy template, and its seconds, in a process that may take 128 MB for all."""
    done = subprocess.run([sys.executable, "-c", RUN], input=json.dumps(GREEDY), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_template_is_stopped_within_two_seconds_and_128_megabytes(told: dict[str, list[Any]], name: str) -> None:
    said, seconds = told[name]
    assert said == "refused"
    assert seconds < 2


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_reaches_python(template: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    messages = json.loads(json.dumps(TALK))
    try:
        text = render(template, messages)
    except Exception as error:
        assert not isinstance(error, Overdrawn)
        text = ""
    assert not any(word in text for word in ("<class", "<module", "<function", "root:", "built-in", "'os'"))
    assert messages == TALK
    assert list(tmp_path.iterdir()) == []


def fake(template: str) -> Any:
    return SimpleNamespace(get_chat_template=lambda name, tools: template, special_tokens_map={})


def test_the_error_says_what_the_template_did_and_what_to_do() -> None:
    with pytest.raises(ModelError, match="loops for too long or writes too much.*--chat-template"):
        render_text(fake(GREEDY["nested loops"]), ASKED, True)


def test_a_template_that_overdrew_is_not_run_again_on_as_much() -> None:
    template = "{% if messages | length > 1 %}" + GREEDY["nested loops"] + "{% endif %}a{# again #}"
    assert render(template, ASKED) == "a"
    with pytest.raises(Overdrawn):
        render(template, TALK)
    begun = time.perf_counter()
    with pytest.raises(Overdrawn):
        render(template, TALK)
    assert time.perf_counter() - begun < 0.1
    assert render(template, ASKED) == "a"


def test_a_conversation_that_is_too_much_for_a_template_is_no_reason_to_refuse_a_short_one() -> None:
    """Some templates write all they have written once more at every turn."""
    again = "{%- set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = ns.all + m.content %}{% endfor %}{{ ns.all }}"
    long = [{"role": "system", "content": "x" * 100}] * 2000
    with pytest.raises(Overdrawn):
        render(again, long)
    assert render(again, long[:3]) == "x" * 300
    with pytest.raises(Overdrawn):
        render(again, long)


def test_a_long_conversation_may_cost_more() -> None:
    template = "{% for m in messages %}{{ '<' + m.role + '>' + m.content.strip() + '\n' }}{% endfor %}"
    talk = [{"role": "user", "content": " wind " * 5000}] * 200
    assert len(render(template, talk)) > 200 * 29_000


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_honest_template_gives_what_transformers_makes_of_it(tiny_tokenizer: Any, name: str) -> None:
    for messages in (ASKED, TALK):
        theirs = tiny_tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
        )
        named = {**tiny_tokenizer.special_tokens_map, "add_generation_prompt": True}
        assert render(TEMPLATES[name], messages, **named) == theirs


RICH = """{%- set ns = namespace(first=true, text='') -%}
{% macro show(m) %}{{ m.role ~ ': ' ~ (m.content | trim) }}{{ ' ' * 3 }}{% endmacro %}
{% for m in messages[::-1] %}{% if loop.last %}{% set ns.text = ns.text + show(m) %}{% else %}{{ show(m) }}{% endif %}
{% if m.reasoning_content is defined %}[{{ m['reasoning_content'] | upper }}/{{ m.thinking }}]{% endif %}
{{ loop.index0 }}/{{ loop.length }} {{ loop.revindex }} {{ '%02d-%s' % (loop.index, m.role) }} {{ '{:>5}'.format(m.role[:2]) }}
{% endfor %}{% for k, v in {'a': [1, 2], 'b': messages[0]}.items() %}{{ k }}={{ v | tojson }}{{ v | tojson(indent=2) }}{% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ (1, 'x') }} {{ ['a'] + ['b'] }} {{ 7 % 4 }} {{ 2 ** 8 }} {{ 3 * 2 }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'x' in ['x', messages[0].role] }} {{ dict(a=1) }}
{% generation %}{{ ns.text | replace('Wo', 'Wer') | indent(2) }}{% endgeneration %}{% for i in range(3) if i %}{% continue %}{% endfor %}
{% set block %}{{ eos_token }}{% endset %}{{ block }}{% for x in missing %}{% else %}none{% endfor %}{{ missing }}"""


def test_all_that_templates_use_gives_what_transformers_makes_of_it(tiny_tokenizer: Any) -> None:
    theirs = tiny_tokenizer.apply_chat_template(TALK, chat_template=RICH, tokenize=False)
    tiny = tiny_tokenizer.chat_template
    try:
        tiny_tokenizer.chat_template = RICH
        assert render_text(tiny_tokenizer, TALK, False) == theirs
    finally:
        tiny_tokenizer.chat_template = tiny


def test_transformers_gives_templates_nothing_that_is_missing_here() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs, ours = _compile_jinja_template("{{ 1 }}").environment, Sandbox()
    assert theirs.globals.keys() - ours.globals.keys() == {"lipsum"}
    assert theirs.filters.keys() - ours.filters.keys() == {"pprint", "urlize", "wordwrap", "xmlattr"}
    assert theirs.tests.keys() == ours.tests.keys()
