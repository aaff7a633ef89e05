"""Chat templates: the text `transformers` would write, within a budget of work."""

import datetime
import json
import subprocess
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest

from jtok.errors import ArgumentError, ArgumentTypeError, TemplateError
from jtok.text import Vocabulary
from tests.text.kinds import byte_bpe, metaspace_bpe

BASE = byte_bpe(257).tokenizer_json()
HELLO = [{"role": "user", "content": "hi"}]
CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " What is <2 & 3>? é"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n6 ", "tool_calls": None},
    {"role": "user", "content": "Und?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <a> & b: ü",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]

CHATML = """\
{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""
INST = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}\
{% set system = false %}{% endif %}{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate') }}{% endif %}\
{% if loop.index0 == 0 and system is not false %}\
{% set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' ~ content.strip() ~ ' [/INST]' }}\
{% else %}{{ ' '  ~ content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"""
TOOLED = """\
{%- macro row(name, spec, depth=0) -%}
{{ '  ' * depth }}- {{ name }}: {{ spec | tojson }}
{% endmacro -%}
{%- if tools is defined and tools %}
# Tools
{%- for tool in tools %}
{%- set f = tool.function %}
{{ f.name | upper }} {{ f.description }}
{% for key, value in f.parameters.properties | items %}
{{ row(key, value, 1) }}
{% endfor %}
{{ tool | tojson(indent=2) }}
{{ f.parameters.keys() | list | join(',') }}
{%- endfor %}
{%- endif %}
"""
THINKING = """\
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == "user" and message.content is string %}
        {%- set ns.seen = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.index0 > ns.last or not message.tool_calls %}
{{- message.role ~ ':' ~ content }}
    {%- endif %}
    {%- if message.content.endswith('?') and not loop.last %}
{{ loop.nextitem.role }}
    {%- endif %}
{%- endfor %}
{%- for m in messages | selectattr('role', 'equalto', 'user') | list %}
{{ m.content|trim }}|
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}<t></t>{% endif %}
{%- for m in messages if m.role == 'user' %}
{{ loop.index }}{% if loop.index > 1 %}{% break %}{% endif %}
{% endfor %}
{% generation %}answer{% endgeneration %}
{{ messages | map(attribute='role') | unique | sort | join(' ') }} {{ 7 // 2 }}
{{ 2 ** 5 }} {{ '%s=%d' % ('a', 3) }} {{ none }} {{ missing }} {{ 'a b' | title }}
{{ [1, 'a', {'b': 2.5}] }}
"""
REAL = {"chatml": CHATML, "inst": INST, "tooled": TOOLED, "thinking": THINKING}


def with_template(template, **config):
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return Vocabulary.from_json(BASE, {**roles, "chat_template": template, **config})


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(
            self.call_method("_keep"), [], [], body
        ).set_lineno(line)

    def _keep(self, caller):
        return caller()


def reference(template, **variables):
    """Jinja as `transformers` sets it up, with no bounds."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment.filters["tojson"] = tojson
    token = "<|endoftext|>"
    variables = {"bos_token": token, "eos_token": token, **variables}
    return environment.from_string(template).render(**variables)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", REAL)
def test_usual_templates_render_as_in_plain_jinja(name, tools, prompt):
    extra = {"enable_thinking": False}
    text = with_template(REAL[name]).render_chat(
        CHAT, add_generation_prompt=prompt, tools=tools, extra=extra
    )
    assert text == reference(
        REAL[name],
        messages=CHAT,
        tools=tools,
        add_generation_prompt=prompt,
        **extra,
    )
    assert len(text) > 20 or name == "tooled"


def test_long_chats_stay_within_the_budget():
    chat = CHAT[1:3] * 400 + CHAT[1:2]
    long = [*CHAT[:1], {"role": "user", "content": "word " * 100_000}]
    for name, template in REAL.items():
        vocabulary = with_template(template)
        assert "word" in vocabulary.render_chat(long) or name == "tooled"
        assert len(vocabulary.render_chat(chat)) > 10_000 or name == "tooled"


def test_bos_is_there_once():
    """Llama's tokenizer adds BOS itself, and so do its templates."""
    plain = metaspace_bpe()
    config = {"chat_template": INST, "bos_token": "<s>", "eos_token": "</s>"}
    vocabulary = Vocabulary.from_json(plain.tokenizer_json(), config)
    ids = vocabulary.encode_chat(HELLO)
    assert ids.tolist().count(1) == 1
    assert ids[0] == 1
    assert vocabulary.decode(ids) == "[INST] hi [/INST]"
    text = vocabulary.render_chat(HELLO)
    assert ids.tolist() == vocabulary.encode(text, specials=False).tolist()


def test_templates_by_name_and_from_files(tmp_path):
    named = [
        {"name": "default", "template": "d"},
        {"name": "tool_use", "template": "t{{ tools|length }}"},
        {"name": "rag", "template": "r{{ documents[0] }}"},
    ]
    vocabulary = with_template(named)
    assert set(vocabulary.chat_templates) == {"default", "tool_use", "rag"}
    assert vocabulary.render_chat(HELLO) == "d"
    assert vocabulary.render_chat(HELLO, tools=TOOLS) == "t1"
    assert vocabulary.render_chat(HELLO, tools=TOOLS, template="default") == "d"
    extra = {"documents": ["x"]}
    assert vocabulary.render_chat(HELLO, template="rag", extra=extra) == "rx"
    with pytest.raises(ArgumentError, match="did you mean rag"):
        vocabulary.render_chat(HELLO, template="rags")
    vocabulary.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "more.jinja").write_text("more")
    loaded = Vocabulary.load(tmp_path)
    assert loaded.chat_template == loaded.render_chat(HELLO) == "file"
    assert loaded.render_chat(HELLO, template="more") == "more"
    loaded.save(tmp_path / "again")
    assert Vocabulary.load(tmp_path / "again").chat_templates == loaded.chat_templates


def test_a_vocabulary_without_a_template_says_so():
    with pytest.raises(ArgumentError, match=r"no chat template, expected one in its"):
        byte_bpe(257).render_chat(HELLO)
    with pytest.raises(ArgumentError, match=r"no chat template \(only rag\)"):
        with_template([{"name": "rag", "template": ""}]).render_chat(HELLO)
    odd = [{"name": 3, "template": "x"}, "y", {"name": "rag"}, None]
    assert with_template(odd).chat_templates == {}


def test_messages_are_plain_data():
    vocabulary = with_template("{{ messages[0].content }}")
    for bad in ("hi", {"role": "user"}, ["hi"], [[1]], [None]):
        with pytest.raises(ArgumentTypeError, match="messages: got"):
            vocabulary.render_chat(bad)
    for bad in (object(), {1: 2}, {"a": [print]}, b"x"):
        with pytest.raises(ArgumentTypeError, match="messages: got"):
            vocabulary.render_chat([{"content": bad}])
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ArgumentTypeError, match="levels deep"):
        vocabulary.render_chat([{"content": deep}])
    with pytest.raises(ArgumentError, match=r"extra: got \['messages'\]"):
        vocabulary.render_chat(HELLO, extra={"messages": 1})
    with pytest.raises(ArgumentTypeError, match="extra: got"):
        vocabulary.render_chat(HELLO, extra={"x": object()})
    assert vocabulary.render_chat(HELLO) == "hi"


def test_a_template_cannot_change_what_it_gets():
    vocabulary = with_template("{% set _ = messages.append(1) %}")
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(TemplateError, match="append"):
        vocabulary.render_chat(messages)
    assert messages == HELLO


def test_the_date_is_that_of_today():
    text = with_template("{{ strftime_now('%Y') }}").render_chat(HELLO)
    assert abs(int(text) - datetime.date.today().year) <= 1


def test_a_template_may_refuse_the_messages():
    vocabulary = with_template(INST)
    with pytest.raises(TemplateError, match="refuses them: roles must alternate"):
        vocabulary.render_chat([*HELLO, *HELLO])


def test_jinja_is_needed_only_to_render():
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from jtok.text import Vocabulary\n"
        "v = Vocabulary.train_bpe(['a'], 257)\n"
        "v = Vocabulary.from_json(v.tokenizer_json(), {'chat_template': 'x'})\n"
        "print(v.chat_template)\n"
        "try: v.render_chat([])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("x\nTemplateError messages:"), done.stderr
    assert "jinja2" in done.stdout and "not installed" in done.stdout


# ---- what must not happen

DAG = (
    "{% set ns = namespace(l=(1,)) %}"
    "{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}"
)
BIG = "{% set s = 'a' * 100000 %}"
BOMBS = {
    "range": "{% for i in range(10 ** 12) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "filtered": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}x"
    "{% endfor %}{% endfor %}",
    "doubled": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "added": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "captured": "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}"
    "{% set y %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = y %}{% endfor %}",
    "repeated": "{{ 'a' * 10 ** 10 }}",
    "list": "{{ ([1] * 10 ** 10) | length }}",
    "power": "{{ 10 ** 10 ** 8 ** 99 }}",
    "squares": "{% set ns = namespace(s=3) %}{% for i in range(60) %}"
    "{% set ns.s = ns.s * ns.s %}{% endfor %}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "star": "{{ '%*d' % (10 ** 9, 1) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "indent": "{{ 'a' | indent(10 ** 10, true) }}",
    "json_indent": "{{ [1] | tojson(indent=10 ** 10) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "loop": "{% for i in [[]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "printed": DAG + "{{ ns.l }}",
    "json": DAG + "{{ ns.l | tojson }}",
    "compared": DAG + "{{ ns.l == (ns.l, ns.l) }}",
    "hashed": DAG + "{{ {ns.l: 1} }}",
    "looked_up": DAG + "{{ {}[ns.l] }}",
    "got": DAG + "{{ {}.get(ns.l) }}",
    "sorted": DAG + "{{ [ns.l, ns.l] | sort | length }}",
    "unique": DAG + "{{ [ns.l] | unique | list | length }}",
    "replaced": BIG + "{{ s.replace('a', s) | length }}",
    "replace": BIG + "{{ s | replace('a', s) | length }}",
    "joined": BIG + "{{ s.join(range(99999) | map('string') | list) | length }}",
    "join": BIG + "{{ range(99999) | join(s) | length }}",
    "split": "{% set s = 'a ' * 100000 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(9999) %}{% set ns.l = [ns.l, s.split(' ')] %}{% endfor %}",
    "searched": BIG + "{% for i in range(99999) %}{{ 'b' in s }}{% endfor %}",
    "sliced": "{% set l = range(99999) | list %}{% for i in range(99999) %}"
    "{% set x = l[1:] %}{% endfor %}",
    "stripped": "{% set s = 'a' * 1000000 %}{{ s.strip('b' * 1000000) | length }}",
    "summed": "{{ ([[1]] * 99999) | sum(start=[]) | length }}",
    "static": "{% set y %}{% for i in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endset %}",
    "integer": "{{ ('9' * 10 ** 6) | int }}",
    "rounded": "{{ 1.5 | round(10 ** 9) }}",
    "bytes": "{{ (5).to_bytes(10 ** 10, 'big') }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "lorem": "{{ lipsum(n=10 ** 8) }}",
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "many": "{{ i }}" * 14_000,
    "long": "x" * 200_000,
    "budget": "{{ -10000000 | jtok.tick }}",
    "open": "{% for i in",
    "comment": "{#" * 40_000,
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "item": "{{ messages['__class__'].mro() }}",
    "attr": "{{ '' | attr('__class__') }}",
    "map": "{{ [''] | map(attribute='__class__') | list | first | string }}x{{ 1/0 }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "function": "{{ namespace.__init__ }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "append": "{% set _ = messages.append(1) %}",
    "update": "{% set _ = messages[0].update({}) %}",
}


QUICK = ["range", "doubled", "repeated", "squares", "format", "recursion", "static"]


@pytest.mark.parametrize("name", QUICK)
def test_work_without_end_is_stopped(name):
    with pytest.raises(TemplateError, match="^(template|messages): "):
        with_template(BOMBS[name]).render_chat(HELLO)


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_of_python_is_reached(name):
    """An unsafe attribute is an undefined value: printed as nothing, else an error."""
    try:
        assert with_template(ESCAPES[name]).render_chat(HELLO) == ""
    except TemplateError as error:
        assert str(error).startswith("template: ")


MEASURE = """
import json, resource, sys, time
from jtok.errors import TemplateError
from jtok.text import Vocabulary

base = Vocabulary.train_bpe(["a"], 257).tokenizer_json()

def render(text):
    config = {"chat_template": text}
    Vocabulary.from_json(base, config).render_chat([{"content": "hi"}])

def mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

render("x")
before, seen = mib(), {}
for name, text in json.load(sys.stdin).items():
    start = time.process_time()
    try:
        render(text)
        seen[name] = "no error"
    except TemplateError:
        seen[name] = time.process_time() - start
print(json.dumps([mib() - before, seen]))
"""


@pytest.mark.medium
def test_no_bomb_takes_long_or_fills_the_memory():
    """In a process of its own, where nothing else takes memory or checks types."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(BOMBS),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown, seen = json.loads(done.stdout)
    assert grown < 300  # MiB
    assert [name for name, spent in seen.items() if spent == "no error"] == []
    # A second or so on a free core, so less than four of a busy one.
    assert {name: spent for name, spent in seen.items() if spent > 4} == {}
