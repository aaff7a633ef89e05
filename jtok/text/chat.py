"""Messages of a chat to the text that a model was trained on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtok.errors import ArgumentError, ArgumentTypeError, TemplateError, check, near
from jtok.text import _tokenizer_json as tj
from jtok.text._tokens import TokenTable

__all__ = ["ChatTable"]

STEPS = 500_000  # of a template, however short the messages are
PER_INPUT = 50  # more for each value, and for every 16 letters, of the messages
PASSES = 4  # of the whole template for each message
_DEEPEST = 64


class ChatTable(TokenTable):
    """The part of a `Vocabulary` that knows its chat templates."""

    @property
    def chat_templates(self) -> dict[str, str]:
        """Jinja texts by name; the usual one is `default`."""
        found: dict[str, str] = {}
        given = self._config.get("chat_template")
        if isinstance(given, str):
            found["default"] = given
        for entry in given if isinstance(given, list) else ():
            named = entry if isinstance(entry, dict) else {}
            name, text = named.get("name"), named.get("template")
            if isinstance(name, str) and isinstance(text, str):
                found[name] = text
        for name, text in self._contents.items():
            if name == tj.TEMPLATE:
                found["default"] = text
            elif name.startswith(tj.TEMPLATES):
                found[name.removeprefix(tj.TEMPLATES).removesuffix(".jinja")] = text
        return found

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the chat template, the default one of several; or None."""
        return self.chat_templates.get("default")

    def render_chat(
        self,
        messages: Iterable[Any],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, as the tokenizer's chat template writes it.

        A template is code from whoever made the files. It runs in a sandbox without
        files, network or Python's internals, and with a budget of work: one that
        loops without end, recurses or grows its text is stopped within a second or
        so. Filters and methods that have no bound (`format`, `center`) are missing.

        Args:
          messages: `{"role": "user", "content": "..."}` and what the template reads
            beside these; of JSON's types.
          add_generation_prompt: end with what comes before an assistant's answer.
          tools: JSON schemas of tools, for templates that know them.
          template: name of one of `chat_templates`; None takes `tool_use` where there
            is one and tools are given, else `default`.
          extra: more variables for the template, for instance
            `{"enable_thinking": False}`.

        Returns:
          The text, with control tokens spelled out.

        Raises:
          ArgumentError: there is no template, or none of that name.
          ArgumentTypeError: messages or variables of other types than JSON's.
          TemplateError: the template refuses the messages, fails, or does too much.

        Example:
          >>> from jtok.text import Vocabulary
          >>> config = {"chat_template": "{% for m in messages %}[{{ m.content }}]"
          ...           "{% endfor %}"}
          >>> json = Vocabulary.train_bpe(["a b"], 257).tokenizer_json()
          >>> Vocabulary.from_json(json, config).render_chat([{"content": "a"}])
          '[a]'
        """
        if isinstance(messages, str | bytes | Mapping):
            raise ArgumentTypeError(
                f"messages: got {messages!r:.80}, expected a list of messages."
            )
        rows = [_message(message) for message in messages]
        source = self._chosen(template, bool(tools))
        given = {
            "messages": rows,
            "tools": None if tools is None else plain(list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": bool(add_generation_prompt),
        }
        added = plain(dict(extra or {}), "extra")
        taken = sorted(given.keys() & added.keys() - {"documents"})
        check(not taken, "extra", taken, "no variable that has an argument of its own")
        roles = {
            f"{role}_token": self._surfaces[id_] for role, id_ in self.special.items()
        }
        steps = STEPS + PER_INPUT * (_weight(given) + _weight(added))
        try:
            from jtok.text import _sandbox
        except ImportError as error:
            raise TemplateError(
                "messages: rendering a chat template needs the package jinja2 "
                "(version 3.1 or later), which is not installed."
            ) from error
        variables = {**roles, **given, **added}
        passes = PASSES * (1 + len(rows))
        return _sandbox.render(source, variables, steps=steps, passes=passes)

    def _chosen(self, name: str | None, tools: bool) -> str:
        known = self.chat_templates
        if name is None:
            name = "tool_use" if tools and "tool_use" in known else "default"
            if name not in known:
                among = f" (only {', '.join(sorted(known))})" if known else ""
                raise ArgumentError(
                    f"messages: {self._origin} has no chat template{among}, expected "
                    f"one in its {tj.CONFIG} or {tj.TEMPLATE}."
                )
        if name not in known:
            raise ArgumentError(f"template: got {name!r}{near(name, known)}.")
        return known[name]


def _message(message: Any) -> Any:
    if not isinstance(message, Mapping):
        raise ArgumentTypeError(
            f"messages: got {message!r:.80}, expected mappings such as "
            '{"role": "user", "content": "..."}.'
        )
    return plain(message, "messages")


def plain(value: Any, argument: str, depth: int = 0) -> Any:
    """A copy of plain JSON types, in which nothing of the caller's can be changed.

    Args:
      value: mappings with string keys, lists, strings, numbers, booleans, None.
      argument: its name, for messages.
      depth: how deep it stands.

    Raises:
      ArgumentTypeError: it holds something else, or is too deep.
    """
    if depth > _DEEPEST:
        raise ArgumentTypeError(
            f"{argument}: got values over {_DEEPEST} levels deep, expected less."
        )
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentTypeError(f"{argument}: got the key {key!r}, no string.")
        return {str(k): plain(v, argument, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, argument, depth + 1) for item in value]
    raise ArgumentTypeError(
        f"{argument}: got {value!r:.80} of type {type(value).__name__}, expected "
        "JSON's types: mappings, lists, strings, numbers, booleans, None."
    )


def _weight(value: Any) -> int:
    """What the sandbox counts for a value: one each, and one for 16 letters."""
    if isinstance(value, str):
        return 1 + len(value) // 16
    if isinstance(value, Mapping):
        return 1 + sum(_weight(key) + _weight(item) for key, item in value.items())
    if isinstance(value, list):
        return 1 + sum(map(_weight, value))
    return 1
