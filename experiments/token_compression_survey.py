"""Every compressor at equal budgets: what it costs in accuracy, FLOPs, bytes and time.

Small vision-language models are trained in the run on honestly synthetic scenes
(`experiments.scenes`): a few objects on a repeated background, and questions about
them. Then each method of `jtok.compress.methods()` that is meant for images and needs
no training leaves a half, a quarter and a ninth of the visual tokens. One table has
accuracy over seeds, counted FLOPs and KV bytes of the decoder, and measured time; one
plot shows accuracy against FLOPs; pictures show which tokens were kept. Baselines are
random and evenly spaced tokens. FastV and SparseVLM act inside the decoder, all others
before it. Positions are renumbered (what shortening before a decoder does) or gathered.

```
python -m experiments.run token_compression_survey
python -m experiments.run token_compression_survey --preset full
```

The survey (arXiv 2507.20198) has no experiment of its own; the figures that it collects
are of LLaVA-1.5-7B and other sizes of model. The tower here has a class token whose
attention ranks tokens where a paper asks for it, and the means of all queries rank them
where a tower has none. Methods with parameters are listed with their number and are not
trained here. About 8 minutes on 2 free CPU cores (an estimate), models included.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import survey_claims, survey_models, survey_pictures
from experiments.scene_models import SceneModel, encode, prompt, trained
from experiments.scenes import SceneConfig, make_scenes
from experiments.survey_claims import Case, Results
from jtok.compress import Budget, attention_scores, compress, methods
from jtok.errors import ArgumentError

CLAIMS = (
    "informative",
    "budgets",
    "quarter",
    "ninth",
    "question",
    "attention",
    "diversity",
    "averages",
    "positions",
    "cheaper",
    "faster",
)
SOURCES = (
    "experiments/cache.py",
    "experiments/scene_models.py",
    "experiments/scenes.py",
    "experiments/survey_claims.py",
    "experiments/survey_models.py",
    "jtok/compress/adjacent.py",
    "jtok/compress/attention_scores.py",
    "jtok/compress/baselines.py",
    "jtok/compress/density.py",
    "jtok/compress/divprune.py",
    "jtok/compress/fastv.py",
    "jtok/compress/flops.py",
    "jtok/compress/interface.py",
    "jtok/compress/matching.py",
    "jtok/compress/menu.py",
    "jtok/compress/pitome.py",
    "jtok/compress/prumerge.py",
    "jtok/compress/rounds.py",
    "jtok/compress/selection.py",
    "jtok/compress/sparsevlm.py",
    "jtok/compress/tome.py",
    "jtok/compress/visionzip.py",
    "jtok/models/model.py",
    "jtok/nn/block.py",
    "jtok/ops/plan.py",
)
MINUTES = {"smoke": 0.4, "small": 8, "full": 600}


@dataclasses.dataclass(frozen=True)
class Config:
    """Models, scenes, and budgets.

    A model of `scene` is trained for each seed and asked about `scenes` pictures,
    `asked` questions each. `keep` are the shares of visual tokens that are left;
    FastV and SparseVLM act before decoder layer `layer`. Each timing is of `timed`
    questions, the least of `repeats`. With `model`, a hub id or folder of a LLaVA, that
    one is asked the questions of a file of POPE about pictures in the folder `images`
    instead. Of the menu only `methods` are compared, if any are named.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    scenes: int = 128
    asked: int = 1
    keep: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 9)
    layer: int = 2
    timed: int = 32
    repeats: int = 3
    model: str = ""
    questions: str = ""
    images: str = ""
    methods: tuple[str, ...] = ()


PRESETS = {
    "smoke": Config(
        seeds=(0,),
        scene=SceneConfig(
            grid=6, objects=2, tower_layers=1, tower_width=32, layers=3, width=32,
            heads=2, crop=4, steps=4, batch=2, asked=2,
        ),
        scenes=4, layer=1, repeats=1, keep=(1 / 4, 1 / 9),
        methods=(
            "average_pooling", "divprune", "fastv", "random", "uniform", "visionzip",
        ),
    ),
    "small": Config(),
    "full": Config(
        seeds=(0,), keep=(192 / 576, 128 / 576, 64 / 576), layer=2, scenes=5000,
        asked=1, model="llava-hf/llava-1.5-7b-hf", images="coco/val2014",
        questions="pope/coco_pope_random.json",
    ),
}  # fmt: skip


def cases(only: tuple[str, ...] = ()) -> list[Case]:
    """What is compared: the menu's methods for images that need no training."""
    found = []
    for name, method in methods(modality="image").items():
        if method.trained or (only and name not in only):
            continue
        if name == "fastv":
            found.append(Case("fastv (in the decoder)", method, "last", True))
            found.append(Case("class attention", method, "class"))
            found.append(Case("column means", method, "mean"))
        elif name == "sparsevlm":
            found.append(Case("sparsevlm (in the decoder)", method, "words", True))
        elif name == "visionzip":
            found.append(Case(name, method, "class"))
            found.append(Case("visionzip, column means", method, "mean"))
        else:
            attn = "wide" if "attn" in method.needs else None
            found.append(Case(name, method, attn))
    return found


def run(config: Config, report: Any) -> None:
    """Trains or finds the models, and asks them with fewer and fewer tokens.

    Args:
      config: what to train and to measure.
      report: where the figures go.
    """
    if config.model:
        whole, found, lm = survey_models.ask_llava(
            config, cases(config.methods), report
        )
        count, refused = 576, {}
    else:
        report.data("scenes", b"drawn by experiments.scenes", kind="synthetic")
        whole, found, refused, lm = _ask_scenes(config, report)
        count = config.scene.tokens
    results = Results(config.layer, cases(config.methods), lm, whole, found, count)
    rows = survey_claims.table(results)
    report.table("All methods", rows)
    report.table("Methods that need training", survey_models.untrained(config.scene))
    if refused:
        report.text(
            "Not possible at these sizes: "
            + "; ".join(f"{what} ({why})" for what, why in refused.items())
        )
    report.figure("Accuracy against FLOPs", survey_pictures.pareto(rows))
    survey_claims.claim_all(results, report)


def _ask_scenes(config: Config, report: Any) -> tuple[Any, ...]:
    """Trains or finds a model a seed and measures every method on it."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    whole: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    lm: Any = None
    for number, seed in enumerate(report.progress(config.seeds, "seeds")):
        model, name = trained(dataclasses.replace(config.scene, seed=seed))
        report.artifact(f"scenes, seed {seed}", name)
        lm = model.lm.config
        # The seed is no part of what is compiled.
        model = dataclasses.replace(model, config=config.scene)
        trial = _trial(config, model, seed, timed=number == 0)
        whole.append(trial.whole())
        for case in cases(config.methods):
            for budget in _budgets(config):
                try:
                    row = trial.measure(case, budget)
                except ArgumentError as error:
                    refused[f"{case.label}, {budget}"] = str(error)
                    continue
                found.setdefault((case.label, budget), []).append(row)
        if number == 0:
            trial.draw(cases(config.methods), _budgets(config), report)
    return whole, found, refused, lm


def _budgets(config: Config) -> tuple[int, ...]:
    return tuple(Budget(keep=share).of(config.scene.tokens) for share in config.keep)


def _trial(config: Config, model: SceneModel, seed: int, *, timed: bool) -> "Trial":
    """One model, its held-out scenes as the tower sees them, and their questions."""
    scenes = make_scenes(
        config.scene, config.scenes, seed=2 * seed + 1, asked=config.asked
    )
    last = config.scene.tower_layers - 1
    see = jax.jit(functools.partial(encode, taps=(("query", last), ("key", last))))
    seen = see(model, scenes.images)
    query, key = seen.taps["query", last], seen.taps["key", last]
    wide = lambda x: x.reshape(*x.shape[:2], 1, -1)
    inputs = {
        "tokens": seen.tokens,
        "keys": jnp.mean(key, axis=2)[:, 1:],
        "wide_keys": wide(key)[:, 1:, 0],
        "class": attention_scores(query, key, of="first")[..., 1:],
        "mean": attention_scores(query, key, of="mean")[..., 1:],
        "wide": attention_scores(wide(query), wide(key), of="first")[..., 1:],
        "key": jax.random.split(jax.random.key(seed), config.scenes),
    }
    return Trial(config, model, scenes, inputs, timed)


@dataclasses.dataclass
class Trial:
    """A model, what its tower made of the scenes, and what is asked about them."""

    config: Config
    model: SceneModel
    scenes: Any
    inputs: dict[str, Any]
    timed: bool

    @property
    def asked(self) -> np.ndarray:
        """The scene of each question."""
        return np.repeat(np.arange(self.config.scenes), self.config.asked)

    @property
    def questions(self) -> np.ndarray:
        """`[questions, 2]` ids."""
        return self.scenes.questions.reshape(-1, 2)

    def right(self, logits: Any) -> np.ndarray:
        """Whether each question is answered right."""
        return np.asarray(jnp.argmax(logits, -1)) == self.scenes.answers.reshape(-1)

    def whole(self) -> dict[str, Any]:
        """With all tokens."""
        tokens = self.inputs["tokens"][self.asked]
        at = jnp.broadcast_to(jnp.arange(1, tokens.shape[1] + 1), tokens.shape[:2])
        valid = jnp.ones(tokens.shape[:2], bool)
        args = (tokens, self.questions, valid, at)
        out = {"accuracy": self.right(_answers(self.model, *args)).mean()}
        if self.timed:
            out["ms"] = self.clock(_answers, *args, first=(self.model,))
        return out

    def clock(self, function: Callable[..., Any], *rows: Any, first: Any = ()) -> float:
        """Milliseconds a row, the least of several calls on a few rows."""
        few = jax.tree.map(lambda leaf: leaf[: self.config.timed], rows)
        count = len(jax.tree.leaves(few)[0])
        jax.block_until_ready(function(*first, *few))  # compiled for this size
        best = np.inf
        for _ in range(self.config.repeats):
            start = time.perf_counter()
            jax.block_until_ready(function(*first, *few))
            best = min(best, time.perf_counter() - start)
        return 1000 * best / count

    def given(self, case: Case) -> dict[str, Any]:
        """What a method that acts before the decoder gets, one row a scene."""
        arrays = {"keys": self.inputs["wide_keys" if case.attn == "wide" else "keys"]}
        if case.attn:
            arrays["attn"] = self.inputs[case.attn]
        if "key" in case.method.takes():
            arrays["key"] = self.inputs["key"]
        return arrays

    def measure(self, case: Case, budget: int) -> dict[str, Any]:
        """Accuracy by both policies of positions, cost, time, and the rows left."""
        if case.inside:
            return self._inside(case, budget)
        act = _before(case.method.name, budget, self.config.scene.grid)
        args = (self.inputs["tokens"], self.given(case))
        found = act(*args)
        rows = jax.tree.map(lambda leaf: leaf[self.asked], found)
        gathered = 1 + jnp.round(rows.position[..., 0]).astype(jnp.int32)
        renumbered = 1 + rows.placed("renumbered")[..., 0].astype(jnp.int32)
        ask = lambda at: (rows.tokens, self.questions, rows.valid, at)
        said = lambda at: self.right(_answers(self.model, *ask(at))).mean()
        out = {
            "accuracy": said(renumbered),
            "gathered": said(gathered),
            "rows": int(jnp.max(jnp.sum(found.valid, axis=1))),
        }
        if self.timed:
            out["ms"] = self.clock(act, *args)
            out["ms"] += self.clock(_answers, *ask(renumbered), first=(self.model,))
        return out

    def _inside(self, case: Case, budget: int) -> dict[str, Any]:
        layer, name = self.config.layer, case.method.name
        tokens = self.inputs["tokens"][self.asked]
        act = functools.partial(_inside, layer, name, budget, self.model)
        logits, found = act(tokens, self.questions)
        out = {
            "accuracy": self.right(logits).mean(),
            "rows": int(jnp.max(jnp.sum(found.valid, axis=1))),
        }
        if self.timed:
            out["ms"] = self.clock(act, tokens, self.questions)
        return out

    def draw(self, all_cases: list[Case], budgets: Any, report: Any) -> None:
        """Pictures of what is kept of one scene, a row of them for each budget."""
        shown = {}
        for case in all_cases:
            for budget in budgets[-2:]:
                try:
                    shown[case.label, budget] = self._plan(case, budget)
                except ArgumentError:
                    continue
        name = "What is kept (white edges), or merged (one colour)"
        image = self.scenes.images[0]
        report.figure(name, survey_pictures.kept(image, self.config.scene.grid, shown))

    def _plan(self, case: Case, budget: int) -> Any:
        if case.inside:
            layer, name = self.config.layer, case.method.name
            tokens = self.inputs["tokens"][self.asked]
            _, found = _inside(layer, name, budget, self.model, tokens, self.questions)
        else:
            act = _before(case.method.name, budget, self.config.scene.grid)
            found = act(self.inputs["tokens"], self.given(case))
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), found.plan)


@functools.cache
def _before(name: str, budget: int, side: int) -> Callable[..., Any]:
    """A method on visual tokens, compiled."""
    return jax.jit(
        lambda tokens, arrays: compress(
            tokens, name, budget=budget, grid=(1, side, side), **arrays
        )
    )


@jax.jit
def _answers(
    model: SceneModel, tokens: Any, questions: Any, valid: Any, positions: Any
) -> jax.Array:
    """Logits of the answers, one question a row."""
    x, at, mask = prompt(model, tokens, questions, valid, positions)
    return model.lm(x, positions=at, mask=mask, logits="last").logits[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _inside(
    layer: int, name: str, budget: int, model: SceneModel, tokens: Any, questions: Any
) -> tuple[jax.Array, Any]:
    """A method between two layers of the decoder."""
    batch, count = tokens.shape[:2]
    at = jnp.broadcast_to(jnp.arange(1, count + 1), (batch, count))
    real = jnp.ones((batch, count), bool)
    x, at, _ = prompt(model, tokens, questions, real, at)
    asked = model.lm.params["embed"]["tokens"][questions]
    return survey_models.inside(
        model.lm, x, at, tokens, asked, first=1, layer=layer, name=name, budget=budget
    )
