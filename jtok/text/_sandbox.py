"""Jinja for untrusted chat templates: no way out, and a bound on all work.

A sandbox keeps a template from Python's internals; it does not keep it from running
forever or filling the memory. Here every operation pays, in proportion to what it may
cost, out of a budget that is fixed before: nodes of a loop's or macro's body when it
runs, letters and items when values are compared, joined, copied or printed. What has
no bound (string formatting, widths, powers) is refused.
"""

import datetime
import functools
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.runtime
import jinja2.sandbox

from jtok.errors import TemplateError

__all__ = ["LETTERS", "Meter", "render"]

LETTERS = 16  # letters that cost as much as one step
_LONGEST = 100_000  # letters of a template
_MOST = 6_000  # nodes of it: compiling takes a second for so many
_USUAL = 3000  # nodes of a long template
_BITS = 4096  # of an integer
_FILTERS = {
    # What a filter pays for: the call alone, its items, all inside of them, or the
    # letters one by one.
    "call": "abs count d default first float int items last length round safe",
    "items": "list map reject rejectattr reverse select selectattr",
    "all": "capitalize dictsort e escape indent join lower max min replace sort string "
    "sum trim unique upper",
    "letters": "title wordcount",
}
_COMPARING = "in eq == equalto ne != lt < lessthan gt > greaterthan le <= ge >= lower "
_COMPARING += "upper"
_STRING = """capitalize casefold count endswith find index isalnum isalpha isascii
isdecimal isdigit islower isnumeric isspace istitle isupper join lower lstrip partition
removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines
startswith strip swapcase title upper"""
_METHODS: dict[type, set[str]] = {
    str: set(_STRING.split()),
    dict: {"get", "items", "keys", "values", "copy"},
    list: {"count", "index", "copy"},
    tuple: {"count", "index"},
}
_OWN = (
    jinja2.runtime.LoopContext,
    jinja2.runtime.Macro,
    jinja2.runtime.BlockReference,
    jinja2.runtime.TemplateReference,
    jinja2.utils.Namespace,
    jinja2.Undefined,
)


class Meter:
    """What a rendering may still spend."""

    def __init__(self, steps: int) -> None:
        self.total = self.left = steps

    def spend(self, steps: int) -> None:
        """Pays, or ends the rendering."""
        self.left -= steps
        if self.left < 0:
            raise TemplateError(
                f"messages: the chat template does too much: it needs over "
                f"{self.total} steps for them."
            )

    def weigh(self, value: Any) -> Any:
        """Pays for everything inside of a value, and gives it back.

        A list that holds one list many times pays each time, as printing it would.
        """
        if isinstance(value, str):
            self.spend(1 + len(value) // LETTERS)
            return value
        waiting = [value]
        while waiting:
            self.spend(1)
            item = waiting.pop()
            if isinstance(item, str):
                self.spend(len(item) // LETTERS)
            elif isinstance(item, Mapping):
                self.spend(len(item))
                waiting.extend(item.keys())
                waiting.extend(item.values())
            elif isinstance(item, range):
                self.spend(len(item))
            elif isinstance(item, _ITEMS):
                self.spend(len(item))
                waiting.extend(item)
            elif isinstance(item, jinja2.utils.Namespace):
                raise TemplateError(
                    "template: a namespace can be neither printed nor compared."
                )
        return value

    def letters(self, value: Any) -> Any:
        """Pays for every letter of a string, as reading it by a regex costs."""
        self.spend(len(value) if isinstance(value, str) else 0)
        return self.weigh(value)

    def count(self, value: Any) -> Any:
        """Pays for the items or letters of a value, but not inside of the items."""
        if isinstance(value, str):
            self.spend(1 + len(value) // LETTERS)
        else:
            self.spend(1 + (len(value) if isinstance(value, _SIZED) else 0))
        return value


_EMPTY: dict[str, Any] = {}
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))
_ITEMS = (list, tuple, set, frozenset, *_VIEWS)
_SIZED = (*_ITEMS, dict, range)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what an assistant says: rendered as it is."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of one rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, meter: Meter) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constants are computed when it is compiled, unmetered
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=jinja2.pass_context(lambda _, value: meter.weigh(value)),
            cache_size=0,
        )
        self.meter = meter
        price: dict[str, Any] = {
            "letters": meter.letters,
            "call": _free,
            "items": meter.count,
            "all": meter.weigh,
        }
        self.filters = {
            name: _priced(self.filters[name], price[kind], meter)
            for kind, names in _FILTERS.items()
            for name in names.split()
        }
        self.filters["tojson"] = functools.partial(_tojson, meter)
        for name, function in _BOUNDED.items():
            self.filters[name] = function(self.filters[name], meter)
        self.filters[_TICK] = _ticker(meter)
        self.filters[_WEIGH], self.filters[_COUNT] = meter.weigh, meter.count
        tests: dict[str, Any] = self.tests
        self.tests = {
            name: _priced(
                test, meter.weigh if name in _COMPARING.split() else _free, meter
            )
            for name, test in tests.items()
        }
        kept = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        own = {"raise_exception": _refuse, "strftime_now": _now}
        self.globals = {**kept, **own}

    def _generate(self, source: Any, *rest: Any, **options: Any) -> Any:
        return super()._generate(_metered(source), *rest, **options)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, _OWN) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No formatter: `str.format` is not among the methods, widths are unbounded."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            self.meter.weigh(argument)  # it is hashed
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        meter.spend(1)
        if isinstance(__obj, _OWN) or __obj is jinja2.utils.Namespace:
            return super().call(__context, __obj, *args, **kwargs)
        for value in (*args, *kwargs.values()):
            meter.weigh(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, tuple(_METHODS)):
            meter.count(owner)
            _foresee(meter, __obj.__name__, owner, args)
        return meter.count(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operator(self.meter, operator, left, right)
        return super().call_binop(context, operator, left, right)


# ---- what an operation costs beyond its arguments


def _foresee(meter: Meter, name: str, owner: Any, args: tuple[Any, ...]) -> None:
    """Pays for what a method is going to make, where it may be more than it got."""
    if name == "replace" and len(args) >= 2 and isinstance(owner, str):
        old, new = args[:2]
        if isinstance(old, str) and isinstance(new, str):
            meter.spend(owner.count(old) * len(new) // LETTERS)
    elif name == "join" and args and isinstance(args[0], _SIZED):
        meter.spend(len(args[0]) * (1 + len(owner) // LETTERS))
    elif name in ("strip", "lstrip", "rstrip") and args and isinstance(args[0], str):
        meter.spend(len(owner) * len(args[0]) // (8 * LETTERS))
    elif name in ("index", "count") and isinstance(owner, list | tuple):
        meter.weigh(owner)


def _check_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    for side in (left, right):
        if isinstance(side, int) and side.bit_length() > _BITS:
            raise TemplateError(f"template: got an integer of over {_BITS} bits.")
        meter.count(side)
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "*" and not numbers:
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, str | list | tuple):
                unit = LETTERS if isinstance(value, str) else 1
                meter.spend(len(value) * max(times, 0) // unit)
    if operator == "**" and numbers and abs(right) * left.bit_length() > _BITS:
        raise TemplateError(f"template: got a power of over {_BITS} bits.")
    if operator == "%" and isinstance(left, str):
        if re.search(r"\*|\d{3}", left):
            raise TemplateError(f"template: got the format {left[:40]!r}, no widths.")
        meter.weigh(right)


def _free(value: Any) -> Any:
    return value


def _priced(
    function: Callable[..., Any], price: Callable[[Any], Any], meter: Meter
) -> Callable[..., Any]:
    """A filter or test that pays for its arguments and for what it makes."""
    passed = (jinja2.runtime.Context, jinja2.nodes.EvalContext, jinja2.Environment)

    @functools.wraps(function)  # keeps Jinja's mark on what it wants passed first
    def paid(*args: Any, **kwargs: Any) -> Any:
        meter.spend(1)
        for value in (*args, *kwargs.values()):
            if not isinstance(value, passed):
                price(value)
        result = function(*args, **kwargs)
        if isinstance(result, Iterator | types.GeneratorType):
            result = list(_each(result, meter))
        return result if price is _free else meter.count(result)

    return paid


def _each(items: Iterator[Any], meter: Meter) -> Iterator[Any]:
    for item in items:
        meter.spend(8)  # for a call or two each
        yield item


def _bounded_replace(function: Any, meter: Meter) -> Any:
    @functools.wraps(function)
    def replace(eval_ctx: Any, s: str, old: str, new: str, count: Any = None) -> Any:
        text, old, new = (
            str(meter.weigh(s)),
            str(meter.weigh(old)),
            str(meter.weigh(new)),
        )
        meter.spend(text.count(old) * len(new) // LETTERS)
        return function(eval_ctx, text, old, new, count)

    return replace


def _bounded_join(function: Any, meter: Meter) -> Any:
    @functools.wraps(function)
    def join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
        items = list(_each(iter(value), meter))
        meter.spend(len(items) * (1 + len(str(meter.weigh(d))) // LETTERS))
        return function(eval_ctx, items, d, attribute)

    return join


def _bounded_trim(function: Any, meter: Meter) -> Any:
    @functools.wraps(function)
    def trim(value: Any, chars: Any = None) -> Any:
        text = str(meter.weigh(value))
        _foresee(meter, "strip", text, (chars,))
        return function(text, chars)

    return trim


def _bounded_indent(function: Any, meter: Meter) -> Any:
    @functools.wraps(function)
    def indent(s: str, width: Any = 4, *rest: Any, **options: Any) -> Any:
        size = len(width) if isinstance(width, str) else width
        if not isinstance(size, int) or not 0 <= size <= 100:
            raise TemplateError(f"template: got the width {size!r}, at most 100.")
        meter.spend((str(meter.weigh(s)).count("\n") + 1) * (1 + size // LETTERS))
        return function(s, width, *rest, **options)

    return indent


def _bounded_numbers(function: Any, meter: Meter) -> Any:
    """`sum` of numbers alone, `round` to few places, `int` in small bases."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        for value in (*args[-2:], *kwargs.values()):
            if isinstance(value, int) and value.bit_length() > _BITS:
                raise TemplateError(f"template: got an integer of over {_BITS} bits.")
        if function.__name__ == "do_round":
            places = kwargs.get("precision", args[1] if len(args) > 1 else 0)
            if not isinstance(places, int) or abs(places) > 100:
                raise TemplateError(f"template: got {places!r} places, at most 100.")
        if function.__name__ in ("sync_do_sum", "do_sum"):
            start = kwargs.get("start", args[3] if len(args) > 3 else 0)
            if not isinstance(start, int | float):
                raise TemplateError("template: got a sum of what is no number.")
        text = args[0] if function.__name__ == "do_int" else None
        if isinstance(text, str) and len(text) > 1000:
            raise TemplateError("template: got an integer of over 1000 digits.")
        return function(*args, **kwargs)

    return bounded


_BOUNDED = {
    "replace": _bounded_replace,
    "join": _bounded_join,
    "indent": _bounded_indent,
    "trim": _bounded_trim,
    "sum": _bounded_numbers,
    "round": _bounded_numbers,
    "int": _bounded_numbers,
}


# ---- what templates call


def _tojson(
    meter: Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `transformers` writes it: no HTML escapes, letters as they are."""
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16):
        raise TemplateError(f"template: got the indent {indent!r}, expected 0 to 16.")
    meter.weigh(value)
    if separators is not None:
        item, key = separators
        meter.spend(100 * len(str(item) + str(key)))
        separators = (str(item)[:8], str(key)[:8])
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=separators,
        sort_keys=bool(sort_keys),
    )
    if indent is None:
        return encoder.encode(value)
    parts = []
    for part in encoder.iterencode(value):
        meter.spend(1 + len(part) // LETTERS)
        parts.append(part)
    return "".join(parts)


def _refuse(message: Any) -> None:
    raise TemplateError(
        f"messages: the chat template refuses them: {str(message)[:999]}"
    )


def _now(form: str) -> str:
    """The time here and now, for templates that state the date."""
    if len(form) > 100 or re.search(r"%[^a-zA-Z%-]|%-?$", form):
        raise TemplateError(f"template: got the time format {form[:40]!r}.")
    return datetime.datetime.now().strftime(form)


# ---- the template's tree

# No template can spell these: the names of filters have no spaces.
_TICK, _WEIGH, _COUNT = "jtok tick", "jtok weigh", "jtok count"


def _ticker(meter: Meter) -> Callable[[int], bool]:
    def tick(steps: int) -> bool:
        meter.spend(steps)
        return True

    return tick


def _filtered(node: Any, name: str) -> Any:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _tick(steps: int, line: int) -> Any:
    number = nodes.Const(steps, lineno=line)
    return nodes.Filter(number, _TICK, [], [], None, None, lineno=line)


def _size(parts: list[Any]) -> int:
    """Steps of nodes: one each, and the letters of text that stands in them."""
    total, waiting = 0, list(parts)
    while waiting:
        node = waiting.pop()
        total += 1
        if isinstance(node, nodes.TemplateData):
            total += len(node.data) // LETTERS
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            total += len(node.value) // LETTERS
        waiting.extend(node.iter_child_nodes())
    return total


def _metered(tree: Any) -> Any:
    """Makes everything pay whose cost a value decides; changes the tree in place."""
    every, waiting = [], [tree]
    while waiting:
        every.append(waiting.pop())
        waiting.extend(every[-1].iter_child_nodes())
    repeated = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
    sizes = {id(node): _size(node.body) for node in every if isinstance(node, repeated)}
    for node in every:
        if isinstance(
            node, nodes.Include | nodes.Import | nodes.FromImport | nodes.Extends
        ):
            raise TemplateError(
                f"template: line {node.lineno} reads another template, which a chat "
                "template cannot."
            )
        if isinstance(node, repeated):
            tick = _tick(sizes[id(node)], node.lineno)
            node.body = [nodes.ExprStmt(tick, lineno=node.lineno), *node.body]
            if isinstance(node, nodes.For) and node.test is not None:
                price = _tick(_size([node.test]), node.lineno)
                node.test = nodes.And(price, node.test, lineno=node.lineno)
        elif isinstance(node, nodes.Compare):
            node.expr = _filtered(node.expr, _WEIGH)
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, _WEIGH)
        elif isinstance(node, nodes.Concat):
            node.nodes = [_filtered(part, _WEIGH) for part in node.nodes]
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _COUNT)
        elif isinstance(node, nodes.Dict):
            for pair in node.items:
                pair.key = _filtered(pair.key, _WEIGH)
    return tree


# ---- rendering


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[types.CodeType, int]:
    """The program, and the steps of running all of it once."""
    environment = _Environment(Meter(0))
    size = _size([environment.parse(source)])
    if size > _MOST:
        raise TemplateError(f"template: got {size} parts, expected at most {_MOST}.")
    return environment.compile(source), size


def render(
    source: str, variables: Mapping[str, Any], *, steps: int, passes: int
) -> str:
    """Renders a template within a budget.

    Args:
      source: the template.
      variables: of JSON's types alone.
      steps: the budget; about a million a second.
      passes: how many times the whole of a usual template may run beside that.

    Returns:
      The text.

    Raises:
      TemplateError: no template, one that fails, or one that does too much.
    """
    if len(source) > _LONGEST:
        raise TemplateError(
            f"template: got {len(source)} letters, expected at most {_LONGEST}."
        )
    try:
        program, size = _compiled(source)
        environment = _Environment(Meter(steps + passes * min(size, _USUAL)))
        template = jinja2.Template.from_code(environment, program, environment.globals)
        return "".join(template.generate(dict(variables)))
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"template: line {error.lineno}: {str(error.message)[:500]}."
        ) from error
    except RecursionError as error:
        raise TemplateError("template: it calls or nests itself too deep.") from error
    except (Exception, MemoryError) as error:
        name = type(error).__name__
        raise TemplateError(
            f"template: it fails ({name}: {str(error)[:500]})."
        ) from error
