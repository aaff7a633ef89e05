"""Bad input to decoding is refused by name, before the target is traced."""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import (
    Processor,
    RecyclingState,
    Session,
    allow_tokens,
    dfa,
    generate,
    no_drafter,
    prompt_lookup,
    serve,
    spelling_dfa,
    stream,
    token_recycling,
)
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    TreeError,
    VocabMismatchError,
)
from jtok.models import Info, Target
from jtok.ops import Tree
from jtok.testing import tiny_model, tiny_vocabulary

VOCAB, POSITIONS = 96, 16


def _traced(*args):
    raise RuntimeError("the target was traced")


TARGET = Target(_traced, _traced, _traced, Info(VOCAB, POSITIONS), _traced)
TABLE = np.zeros((VOCAB, 8), np.int32)
# Users run without the suite's type checks, which would refuse wrong types first.
unchecked = inspect.unwrap(generate)
rdfa, rallow, rspell = map(inspect.unwrap, (dfa, allow_tokens, spelling_dfa))


def test_the_stand_in_notices_tracing():
    with pytest.raises(RuntimeError, match="the target was traced"):
        generate(TARGET, [1, 2], max_new_tokens=2)


@pytest.mark.parametrize(
    "prompts, error, message",
    [
        ([], ArgumentError, "prompts: got []"),
        ([[]], ArgumentError, "prompts: prompt 0 is empty"),
        ([[1], []], ArgumentError, "prompts: prompt 1 is empty"),
        (np.zeros(0, np.int32), ArgumentError, "prompts: "),
        ([1, VOCAB], ArgumentError, "prompts[0]: got 96, expected ids in 0..95"),
        ([[1], [3, VOCAB]], ArgumentError, "prompts[1]: got 96"),
        ([1, -1], ArgumentError, "prompts[0]: got -1"),
        ([np.array([0.5, 1.0])], ArgumentTypeError, "prompts: prompt 0 has shape (2,)"),
        ([[1.0, 2.0]], ArgumentTypeError, "prompts: prompt 0 has shape (2,)"),
        ([[[1, 2]]], ArgumentTypeError, "prompts: prompt 0 has shape (1, 2)"),
        ([np.array([True])], ArgumentTypeError, "dtype bool"),
        ([1.0, 2.0], ArgumentTypeError, "prompts: prompt 0 has shape ()"),
        (7, ArgumentTypeError, "prompts: got int, expected"),
        (None, ArgumentTypeError, "prompts: got NoneType, expected"),
        ("text", ArgumentError, "vocabulary: got None"),
        (["text", "more"], ArgumentError, "vocabulary: got None"),
    ],
)
def test_prompts(prompts, error, message):
    with pytest.raises(error, match=re.escape(message)):
        unchecked(TARGET, prompts, max_new_tokens=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens: got -1"),
        ({"max_new_tokens": [2, 0]}, "max_new_tokens: got [2, 0]"),
        ({"max_new_tokens": [2]}, "max_new_tokens: got 1 values, expected one or 2"),
        ({"temperature": -0.5}, "temperature: got -0.5, expected finite values >= 0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"temperature": [1.0] * 3}, "temperature: got 3 values, expected one or 2"),
        ({"temperature": [1.0, -1.0]}, "temperature: got [1.0, -1.0]"),
        ({"top_k": 0}, "top_k: got 0, expected None or at least 1"),
        ({"top_p": 0.0}, "top_p: got [0.0, 0.0], expected values in (0, 1]"),
        ({"top_p": 1.1}, "top_p: got [1.1, 1.1]"),
        ({"top_p": float("nan")}, "top_p: got [nan, nan]"),
        ({"top_p": [0.5]}, "top_p: got 1 values"),
        ({"min_p": -0.1}, "min_p: got [-0.1, -0.1], expected values in [0, 1]"),
        ({"min_p": 1.1}, "min_p: got [1.1, 1.1]"),
        ({"min_p": [0.1] * 3}, "min_p: got 3 values"),
        ({"seed": [1, 2, 3]}, "seed: got 3 values, expected one or 2"),
        ({"stop_ids": [VOCAB]}, "stop_ids: got 96, expected ids in 0..95"),
        ({"stop_ids": [-1]}, "stop_ids: got -1"),
        ({"sync_every": 0}, "sync_every: got 0, expected None or >= 1"),
        (
            {"max_new_tokens": POSITIONS},
            "prompts: prompt 0 has 2 tokens and max_new_tokens is 16, together 18; "
            "the model has 16 positions",
        ),
        ({"max_new_tokens": [14, 15]}, "prompts: prompt 1 has 2 tokens"),
        ({"drafter_state": TABLE}, "drafter_state: got one, expected None"),
        (
            {"drafter_state": TABLE, "drafter": prompt_lookup()},
            "drafter_state: got one, expected None",
        ),
        (
            {"drafter_state": TABLE, "drafter": no_drafter()},
            "drafter_state: got one, expected None",
        ),
    ],
)
def test_options(options, message):
    options = {"max_new_tokens": 2, **options}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        generate(TARGET, [[1, 2], [3, 4]], **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": [2.5, 1]}, "max_new_tokens: got [2.5, 1], expected int"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: got 2.5, expected int values"),
        ({"temperature": ["hot", 1.0]}, "temperature: got ['hot', 1.0], expected"),
        ({"temperature": [None, 1.0]}, "temperature: got [None, 1.0], expected"),
        ({"seed": [0.5, 1]}, "seed: got [0.5, 1], expected int values"),
    ],
)
def test_types_of_options(options, message):
    options = {"max_new_tokens": 2, **options}
    with pytest.raises(ArgumentTypeError, match=re.escape(message)):
        unchecked(TARGET, [[1, 2], [3, 4]], **options)


@pytest.mark.parametrize("model", [None, "llama", {"params": 1}])
def test_models(model):
    message = f"model: got {type(model).__name__}, expected a Model or a Target"
    with pytest.raises(ArgumentTypeError, match=message):
        unchecked(model, [1, 2], max_new_tokens=2)


def test_parameters_of_a_model_are_its_own():
    model = tiny_model()
    with pytest.raises(ArgumentError, match=r"params: .*the model has its own"):
        generate(model, [1], params=model.params, max_new_tokens=2)


def test_the_last_position_may_be_used():
    # One token more was refused above; here the target is reached.
    with pytest.raises(RuntimeError, match="the target was traced"):
        generate(TARGET, [1, 2], max_new_tokens=POSITIONS - 2)


@pytest.mark.parametrize(
    "per_row, shape, expected",
    [
        (False, (VOCAB + 1, 8), (VOCAB, 8)),
        (False, (VOCAB, 4), (VOCAB, 8)),
        (False, (2, VOCAB, 8), (VOCAB, 8)),
        (True, (VOCAB, 8), (2, VOCAB, 8)),
        (True, (3, VOCAB, 8), (2, VOCAB, 8)),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_tables_of_another_shape(per_row, shape, expected, wrapped):
    table = jnp.zeros(shape, jnp.int32)
    count = jnp.zeros(2, jnp.int32)
    state = RecyclingState(table, count, count) if wrapped else table
    message = f"drafter_state: got a table of shape {shape}, expected {expected}"
    with pytest.raises(VocabMismatchError, match=re.escape(message)):
        generate(
            TARGET,
            [[1, 2], [3, 4]],
            max_new_tokens=2,
            drafter=token_recycling(per_row=per_row),
            drafter_state=state,
        )


def test_more_candidates_than_tokens():
    drafter = token_recycling(VOCAB + 1, Tree.star(2))
    with pytest.raises(ArgumentError, match=r"width: got 97, expected at most 96"):
        generate(TARGET, [1, 2], max_new_tokens=2, drafter=drafter)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"width": 0}, ArgumentError, "width: got 0, expected at least 1"),
        ({"patience": 0}, ArgumentError, "patience: got 0"),
        ({"min_accept": -0.5}, ArgumentError, "min_accept: got -0.5"),
        (
            {"width": 2, "template": Tree.star(3)},
            TreeError,
            "template: its ranks go up to 2, expected ranks below width=2",
        ),
    ],
)
def test_token_recycling(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        token_recycling(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_draft": 0}, "num_draft: got 0"),
        ({"min_ngram": 0}, "min_ngram: got 0"),
        ({"max_ngram": 1, "min_ngram": 2}, "max_ngram: got 1, expected at least 2"),
    ],
)
def test_prompt_lookup(options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        prompt_lookup(**options)


@pytest.mark.parametrize("drafter", [token_recycling, prompt_lookup])
def test_an_unknown_compatibility(drafter):
    message = "compat: got 'offical', expected None or 'official'"
    with pytest.raises(ArgumentError, match=message):
        inspect.unwrap(drafter)(compat="offical")


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Tree.from_paths([(0,), (1, 0)]), "orphan"),
        (lambda: Tree.from_paths([(0, 0), (0,)]), "orphan"),
        (lambda: Tree.from_paths([(0,), (0,)]), "duplicate"),
        (lambda: Tree.from_paths([()]), "paths: got an empty path"),
        (lambda: Tree.from_paths([(-1,)]), "rank -1"),
        (lambda: Tree.from_paths([(8,)], num_candidates=8), "rank 8, expected >= 0"),
        (lambda: Tree.from_paths([(0,), (0, 0), (1,)]), "level order"),
        (lambda: Tree((0,), (-1,)), "parent: node 0 is the root"),
        (lambda: Tree((-1, 1), (-1, 0)), "parent: node 1 has parent 1"),
        (lambda: Tree((), ()), "parent, rank: got 0"),
    ],
)
def test_trees(build, message):
    with pytest.raises(TreeError, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"top_k": "3"}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_ids": 5}, "stop_ids"),
        ({"stop_ids": ["a"]}, "stop_ids"),
        ({"temperature": None}, "temperature"),
        ({"temperature": "1"}, "temperature"),
    ],
)
def test_values_of_a_wrong_type_name_their_argument(options, name):
    with pytest.raises(ArgumentTypeError, match=f"^{name}: got"):
        inspect.unwrap(generate)(tiny_model(), [1, 2], **options)


def test_a_nested_prompt_names_its_place():
    with pytest.raises(ArgumentTypeError, match="prompt 1 is nested"):
        inspect.unwrap(generate)(tiny_model(), [[1, 2], [3, [4]]])


def test_a_state_that_holds_no_table_is_refused():
    with pytest.raises(ArgumentTypeError, match="drafter_state: got str"):
        generate(tiny_model(), [1], drafter=token_recycling(), drafter_state="x")


def test_a_jax_array_is_a_prompt():
    out = generate(tiny_model(), jnp.array([1, 2]), max_new_tokens=2)
    assert out.tokens.shape == (2,)


# What else may be asked for ------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"repetition_penalty": 0.0}, ArgumentError,
            "repetition_penalty: got 0.0, expected finite values > 0",
        ),
        ({"repetition_penalty": [1.0]}, ArgumentError, "repetition_penalty: got 1 val"),
        ({"repetition_penalty": "1"}, ArgumentTypeError, "repetition_penalty: got '1'"),
        ({"presence_penalty": float("nan")}, ArgumentError, "presence_penalty: got na"),
        ({"presence_penalty": [0.0] * 3}, ArgumentError, "presence_penalty: got 3 val"),
        ({"frequency_penalty": float("inf")}, ArgumentError, "frequency_penalty: got"),
        ({"frequency_penalty": None}, ArgumentTypeError, "frequency_penalty: got None"),
        ({"min_new_tokens": -1}, ArgumentError, "min_new_tokens: got -1, expected 0 u"),
        ({"min_new_tokens": 3}, ArgumentError, "min_new_tokens: got 3, expected 0 up"),
        ({"min_new_tokens": [0, 2.5]}, ArgumentTypeError, "min_new_tokens: got [0, 2."),
        ({"logit_bias": {VOCAB: 1.0}}, ArgumentError, "logit_bias: got 96, expected i"),
        ({"logit_bias": {-1: 1.0}}, ArgumentError, "logit_bias: got -1"),
        ({"logit_bias": {1: float("inf")}}, ArgumentError, "logit_bias: got inf"),
        ({"logit_bias": {1: float("nan")}}, ArgumentError, "logit_bias: got nan"),
        ({"logit_bias": {"a": 1.0}}, ArgumentTypeError, "logit_bias: got the key 'a'"),
        ({"logit_bias": {1: "a"}}, ArgumentTypeError, "logit_bias: got 'a' for id 1"),
        ({"logit_bias": [{}]}, ArgumentError, "logit_bias: got 1 mappings, expected o"),
        ({"logit_bias": 3}, ArgumentTypeError, "logit_bias: got 3, expected a mapping"),
        ({"logits_processor": len}, ArgumentTypeError, "logits_processor: got builtin"),
        (
            {"logits_processor": dfa(np.zeros((1, 5), int))}, VocabMismatchError,
            "logits_processor: got transitions of 5 tokens, expected 96",
        ),
        (
            {"logits_processor": allow_tokens([3, VOCAB])}, ArgumentError,
            "logits_processor: got 96, expected ids in 0..95",
        ),
        (
            {"logits_processor": Processor(
                lambda info, tokens: jnp.zeros(3), None, None
            )},
            ArgumentError,
            "logits_processor: got 'a state of shape (3,)', expected [2, ...]",
        ),
        ({"top_logprobs": -1}, ArgumentError, "top_logprobs: got -1, expected 0..96"),
        ({"top_logprobs": 97}, ArgumentError, "top_logprobs: got 97"),
        ({"top_logprobs": True}, ArgumentTypeError, "top_logprobs: got True"),
        ({"stop_strings": ""}, ArgumentError, "stop_strings: got '', expected strings"),
        ({"stop_strings": ["a", ""]}, ArgumentError, "stop_strings: got ['a', '']"),
        ({"stop_strings": [1]}, ArgumentTypeError, "stop_strings: got [1], expected"),
        ({"stop_strings": b"a"}, ArgumentTypeError, "stop_strings: got b'a', expected"),
        ({"stop_strings": "a"}, ArgumentError, "vocabulary: got None, expected one"),
        ({"include_stop": True}, ArgumentError, "include_stop: got True, expected Fal"),
        ({"cache": {}}, ArgumentTypeError, "cache: got dict, expected `Generated.cach"),
        (
            {"cache": Session(None, np.zeros((3, 128), int), np.ones(3), np.zeros(3))},
            ArgumentError, "cache: got '3 rows', expected 2, as there are prompts",
        ),
        ({"messages": [{}]}, ArgumentError, "prompts: got 'some', expected None besid"),
    ],
)  # fmt: skip
def test_further_options(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        unchecked(TARGET, [[1, 2], [3, 4]], **{"max_new_tokens": 2, **options})


@pytest.mark.parametrize(
    "messages, vocabulary, error, message",
    [
        ([{"role": "user"}], None, ArgumentError, "vocabulary: got None"),
        ("hello", tiny_vocabulary(), ArgumentTypeError, "messages: got str, expected"),
        ([], tiny_vocabulary(), ArgumentError, "messages: got [], expected at least o"),
        (
            [{"role": "user", "content": "a"}], tiny_vocabulary(), ArgumentError,
            "messages: the vocabulary has no chat_template",
        ),
    ],
)  # fmt: skip
def test_messages(messages, vocabulary, error, message):
    with pytest.raises(error, match=re.escape(message)):
        unchecked(TARGET, messages=messages, vocabulary=vocabulary)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: rdfa(np.zeros(3, int)), ArgumentTypeError, "transitions: got shape"),
        (lambda: rdfa(np.zeros((2, 3))), ArgumentTypeError, "dtype float64"),
        (lambda: rdfa(np.full((2, 3), 2)), ArgumentError, "transitions: got 'st"),
        (lambda: rdfa(np.full((2, 3), -2)), ArgumentError, "transitions: got 'st"),
        (lambda: rdfa(np.zeros((2, 3), int), start=2), ArgumentError, "start: got 2"),
        (
            lambda: rdfa(np.array([[1, -1], [-1, -1]])), ArgumentError,
            "transitions: state 1 can be reached and allows no token",
        ),
        (lambda: rallow([]), ArgumentError, "ids: got 'no token'"),
        (lambda: rallow([-1]), ArgumentError, "ids: got -1"),
        (lambda: rallow([0.5]), ArgumentTypeError, "ids: got shape (1,)"),
        (
            lambda: rspell(
                np.zeros((1, 5), int), tiny_vocabulary(), accepting=[], stop_ids=[]
            ),
            ArgumentError, "bytes_: got 'shape (1, 5)'",
        ),
        (
            lambda: rspell(
                np.zeros((1, 256), int), tiny_vocabulary(), accepting=[1], stop_ids=[]
            ),
            ArgumentError, "accepting: got 1",
        ),
        (
            lambda: rspell(
                np.zeros((1, 256), int), tiny_vocabulary(), accepting=[0],
                stop_ids=[280],
            ),
            ArgumentError, "stop_ids: got 280",
        ),
    ],
)  # fmt: skip
def test_constraints(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_state_that_cannot_be_reached_may_be_empty():
    dfa(np.array([[0, -1], [-1, -1]]))


@pytest.mark.parametrize(
    "run, prompts", [(inspect.unwrap(stream), [1]), (inspect.unwrap(serve), [[1]])]
)
def test_options_by_name(run, prompts):
    message = "temprature: there is no such option; did you mean temperature"
    with pytest.raises(ArgumentTypeError, match=re.escape(message)):
        run(TARGET, prompts, temprature=1.0)


def test_a_stream_refuses_before_it_is_iterated():
    with pytest.raises(ArgumentError, match="max_new_tokens: got 0"):
        stream(TARGET, [1], max_new_tokens=0)


@pytest.mark.parametrize(
    "prompts, options, error, message",
    [
        ("one", {}, ArgumentTypeError, "prompts: got str, expected an iterable"),
        (5, {}, ArgumentTypeError, "prompts: got int, expected an iterable"),
        ([[1]], {"batch": 0}, ArgumentError, "batch: got 0, expected at least 1"),
        ([[1]], {"batch": 1.5}, ArgumentTypeError, "batch: got 1.5"),
        ([[1]], {"seed": [1]}, ArgumentTypeError, "seed: got [1]"),
        ([[1]], {"sync_every": 0}, ArgumentError, "sync_every: got 0"),
        ([[1]], {"sync_every": None}, ArgumentTypeError, "sync_every: got None"),
        ([[1]], {"keep_cache": True}, ArgumentError, "keep_cache: got one"),
        ([[1]], {"capacity": 0}, ArgumentError, "capacity: got 0, expected at least 1"),
        ([[1]], {"capacity": 1.5}, ArgumentTypeError, "capacity: got 1.5"),
        ([[1]], {"drafter_state": TABLE}, ArgumentError, "drafter_state: got one"),
        (
            [[1]],
            {"temperature": [1.0]},
            ArgumentError,
            "temperature: got [1.0], expected",
        ),
    ],
)
def test_serve(prompts, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(serve)(TARGET, prompts, **options)
