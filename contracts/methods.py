"""What a method declares beside its function, and the registries.

A declaration drives the Dagster asset, the table, the Great Expectations suite and its check, the contract battery
and the docs. ``needs`` names what the pipeline gives to the function as keyword arguments; the words are ``NEEDS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from contracts.errors import ConfigError
from contracts.params import Config
from contracts.registry import Registry
from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import Finding

VIEWS = {
    "reading": "four numbers an example: loss, signal, log_likelihood, quality (every task)",
    "losses": "a loss of every example that can be differentiated (every task)",
    "outputs": "one vector of class logits an example",
    "classes": "the target of an example is one of K classes",
    "numbers": "the target of an example is one number",
    "features": "an example is a vector or an image of numbers",
    "images": "an example is an image of numbers: channels, height, width",
    "interactions": "an example is a user who met an item",
    "tokens": "an example is a sequence of tokens",
    "pixels": "the target of an example is one of K classes a pixel",
    "nodes": "an example is a node of a graph",
}
EVERY_TASK = ("reading", "losses")

NEEDS = {
    "model": "torch.nn.Module: the audited model, eval mode",
    "encoder": "torch.nn.Module: its penultimate activations describe examples: the audited model, or features stored "
    "with its outputs",
    "outputs": "Callable[[ExampleSet], numpy.ndarray]: examples of the data set -> the audited model's logits (N, K), "
    "float32",
    "early_models": "Sequence[torch.nn.Module]: R models stopped at the early epoch, one a seed, eval mode",
    "early_at": "Callable[[Sequence[int]], Mapping[int, Sequence[torch.nn.Module]]]: (epochs) -> for each of them, R "
    "models as they pass that epoch of the full recipe, one a seed; NotApplicable from a recipe that cannot stop "
    "early",
    "ensemble": "recipes.ensemble.ReferenceEnsemble: keep[M, N], reading[M, N, 4] of pool and population",
    "ensemble_if_any": "recipes.ensemble.ReferenceEnsemble, or None where no other method of the plan has it trained: "
    "nothing is trained for this word",
    "ensemble_outputs": "the reference ensemble with the whole outputs of its models, logits[M, N, K]: they are "
    "stored where a listed method needs them",
    "train": "Callable[..., torch.nn.Module]: the subject's own recipe from a fresh initialisation, (data, seed, *, "
    "effort=1.0, steps=None, observe=None); effort multiplies its epochs, steps trains for exactly so many optimiser "
    "steps instead, observe(rows, logits) is called with every mini-batch before its step; NotApplicable for what the "
    "recipe cannot do",
    "build": "Callable[[int], torch.nn.Module]: seed -> a fresh, untrained model of the subject's architecture, on the "
    "CPU",
    "recipe": "recipes.training.Trainer: the plan's recipe with its configuration, on its architecture and device",
    "train_many": "Callable[..., Sequence[torch.nn.Module]]: (ids of each training set, seeds, *, data=None) -> one "
    "model of the subject's own recipe a set, all at once where the recipe and the network allow it; data: the "
    "examples the ids are of, the subject's own when not given",
    "unlearn": "Callable[..., torch.nn.Module]: (method, *, retain, forget, seed) -> the audited model after a "
    "registered unlearner; its attribute ``methods``: the names that the plan lists, or all that are defined for the "
    "task; ``in_use``: the name of the plan's method in use, retrain without a plan",
    "unlearn_from": "Callable[..., torch.nn.Module]: (model, method, *, retain, forget, seed, changed={}) -> any model "
    "of the subject's architecture after a registered unlearner, which gets a copy of it; ``changed``: fields in place "
    "of those of the plan; attributes ``methods`` and ``in_use`` as of unlearn, ``config(method)``: the plan's "
    "configuration of it, ``refusal(method)``: why it does not apply here, as a sentence, or nothing, and ``many``: "
    "(models, method, *, retain, forget, seeds, changed={}), sets and seeds one a model -> for each the model, or the "
    "Diverged, DataError or NotTheModel that the call would have raised; None of a method without a ``plan``",
    "clock": "Callable[[], float]: seconds of a clock that only goes forward",
    "evaluate": "Callable[..., dict]: (model, *, retain, forget, test, seed, metrics) -> those of ua, ra, ta, "
    "mia_efficacy, ... in percent, None if undefined",
    "scores": "Callable[[str], polars.DataFrame]: (example_id, value) of a stored, current score by its name",
    "splits": "Callable[[str], polars.DataFrame]: (example_id, role) of a stored split by its name",
    "tables": "Callable[[str], polars.DataFrame]: (table name) -> a table stored by one of the analyses that the "
    "declaration ``reads``",
    "imported": "polars.DataFrame: the rows that were imported from elsewhere for this very score, with example_id; "
    "those of examples that are no longer in the data, or have another label now, are gone",
    "checkpoints": "contracts.stores.CheckpointStore: where long work keeps how far it is; found again only by a run "
    "that would do exactly the same",
    "device": 'str: "cpu" or "cuda", where the plan\'s models are trained',
    "made": "Callable[[str], sources.made.Made]: a made data set of the plan by its name",
    "secret": "bytes: 32 of them, for this data set alone, derived from that of the state folder: the same folder "
    "gives the same, and data sets of a subject whose configurations name the same ``key``; they go into no table, "
    "artefact or log",
    "select_where": "Callable[[str], numpy.ndarray]: example ids of the training split that an SQL predicate selects",
}


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """Common part of every declaration.

    Attributes:
        needs: what the pipeline gives to the function, words of ``NEEDS``.
        wants: what it reads of the examples' task, words of ``VIEWS``: it applies to every task that gives them all.
    """

    name: str
    doc: str
    source: str = ""
    version: int = 1
    config: type[Config] = field(default=Config)
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.needs) - set(NEEDS))
        if unknown:
            raise ConfigError(f"{self.name}: needs {', '.join(unknown)}; known needs: {', '.join(sorted(NEEDS))}")
        check_views(self.name, self.wants)


def check_views(name: str, views: Sequence[str]) -> None:
    """Refuse words that are not among ``VIEWS``.

    Raises:
        ConfigError: names them and the known ones.
    """
    if unknown := sorted(set(views) - set(VIEWS)):
        raise ConfigError(f"{name}: {', '.join(unknown)} is not a view of a task; known views: {', '.join(VIEWS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """A kind of thing that can be learnt; the decorated class is a ``tasks.base.Task``.

    Attributes:
        version: of how it reads models; one later than the first is part of the data digest: results are made anew.
        gives: the views of its examples that methods may want, words of ``VIEWS``; every task gives ``EVERY_TASK``.
        quality: what its quality (0..1, the reading that its users call right) is, for people ("accuracy").
        loss: what its loss is, for people ("cross-entropy (nats)").
    """

    name: str
    doc: str
    source: str = ""
    version: int = 1
    gives: tuple[str, ...] = EVERY_TASK
    quality: str
    loss: str

    def __post_init__(self) -> None:
        check_views(self.name, self.gives)
        if missing := sorted(set(EVERY_TASK) - set(self.gives)):
            raise ConfigError(
                f"task {self.name}: every task gives {', '.join(EVERY_TASK)}; {', '.join(missing)} missing"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A condition on a whole score table without which the run is kept but refused as the current score."""

    column: str
    at_least: float
    why: str
    statistic: Literal["mean", "min"] = "mean"

    def refusal(self, found: float) -> str:
        """The sentence that says why a run with this statistic does not count, or nothing; NaN does not."""
        if found >= self.at_least:
            return ""
        return f"{self.statistic} {self.column} is {found:.3f}, below {self.at_least:g}: {self.why}"


@dataclass(frozen=True, slots=True)
class Call:
    """What a score calls an example, so that scores can be compared: which examples do several call hard, or noisy?

    Attributes:
        kind: what it says of the example.
        column: the examples are called so whose number in this column is above ``above``; "" calls the top 5% by value.
    """

    kind: Literal["noisy", "hard", "memorised", "duplicate"]
    column: str = ""
    above: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(MethodSpec):
    """A per-example score. The function takes ``(data, *, config, seed, <needs>)`` and returns a polars.DataFrame
    with ``example_id`` (int64, unique) and exactly ``columns``; rows in any order.

    Attributes:
        value: the column shown in ``scores.latest``.
        stderr: the column of its standard error, or "" when the method has none.
        higher_means: one or two words for a high value ("harder", "memorised").
        calls: what it calls which examples; None: nothing that other scores say too.
        gates: conditions that a run must meet to count.
        trains: it trains models on the way. Rounding grows over whole trainings, and a batch size is one of their
            settings and not only how the work is cut: its values may differ where those of other scores must not.
        tolerance: how near to its solution an iterative fit in it stops, relative to the column's largest value; values
            that are functions of the input alone keep 0.
    """

    columns: tuple[Column, ...]
    value: str
    stderr: str = ""
    higher_means: str
    calls: Call | None = None
    gates: tuple[Gate, ...] = ()
    trains: bool = False
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {c.name for c in self.columns}
        wanted = {self.value, self.stderr, *(g.column for g in self.gates), self.calls.column if self.calls else ""} - {
            ""
        }
        if wanted - names:
            raise ConfigError(f"score {self.name}: {', '.join(sorted(wanted - names))} is not among its columns")

    @property
    def table(self) -> TableSpec:
        return TableSpec(
            schema="scores",
            name=self.name,
            doc=self.doc,
            version=self.version,
            columns=(EXAMPLE_ID, *self.columns),
            key=("example_id",),
        )


MADE_ID = Column(name="made_id", dtype="int64", low=0, doc="id of the made example within its data set")
DATASET_ID = Column(name="dataset_id", dtype="str", doc="name of the split or curated set")


def made_table(
    name: str, *, doc: str, columns: Sequence[Column], version: int = 1, key: Sequence[str] = (MADE_ID.name,)
) -> TableSpec:
    """A table of a maker: ``columns`` stand beside the data set's name.

    Args:
        key: what tells the rows of one data set apart: ``made_id``, a column that then stands there too, where a row is
            a made example; columns of its own (an iteration, a network) where it was measured on the way.
    """
    of_made = (MADE_ID,) if MADE_ID.name in key else ()
    return TableSpec(
        schema="curation",
        name=name,
        doc=doc,
        version=version,
        columns=(DATASET_ID, *of_made, *columns),
        key=(DATASET_ID.name, *key),
        partition=(DATASET_ID.name,),
    )


EXAMPLE_ID = Column(name="example_id", dtype="int64", low=0, doc="stable id of the example; every join is on it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """How a table of an analysis or a maker is drawn: beside the numbers in the Dagster UI and in the report.

    Attributes:
        table: name of one of the method's tables.
        kind: "lines" (y against x, with the band low..high), "scatter" (the same, dots with whiskers and no line),
            "dots" (one a row, with whiskers), "bars", "examples" (the examples whose ids are in ``x``, in rows by
            ``series``, best ``y`` first), or "images" (pictures of the shape of an example that are in the "floats"
            column ``y``, in rows by ``series``, "original" first, ordered by the ids in ``x``), or "outlines" (the
            examples whose ids are in ``x``, with the outlines of their true masks and of the predicted ones, whose runs
            are in the "floats" column ``y``).
        series: column that tells the lines apart, or "".
        low, high: columns of the interval, or "".
        value: column of the number under each image, or "".
        where: (column, value): only these rows are drawn.
    """

    table: str
    title: str
    x: str
    y: str
    kind: Literal["lines", "dots", "bars", "scatter", "examples", "images", "outlines"] = "lines"
    series: str = ""
    low: str = ""
    high: str = ""
    value: str = ""
    log_x: bool = False
    where: tuple[tuple[str, object], ...] = ()

    @property
    def is_chart(self) -> bool:
        """Drawn from the numbers of the table alone; not a sheet of examples or images."""
        return self.kind not in ("examples", "images", "outlines")


def _check_pictures(kind: str, name: str, tables: Sequence[TableSpec], pictures: Sequence[Picture]) -> None:
    """Raise :class:`ConfigError` for a picture of a table, or of a column, that is not declared."""
    columns = {t.name: {c.name for c in t.columns} for t in tables}
    for p in pictures:
        used = {p.x, p.y, p.series, p.low, p.high, p.value, *(c for c, _ in p.where)} - {""}
        if not used <= columns.get(p.table, set()):
            raise ConfigError(f"{kind} {name}: picture {p.title!r} draws {', '.join(sorted(used))} of {p.table}")


@dataclass(frozen=True, kw_only=True)
class AnalysisSpec(MethodSpec):
    """A finding about the whole data set or the model rather than one number an example (a pruning curve, laws, an
    audit).

    The function takes ``(data, *, config, seed, progress, <needs>)``, with ``data`` both splits, and returns one
    polars.DataFrame for every table: ``{table.name: frame}``.

    Attributes:
        tables: what it stores, replaced as a whole; the first is the one shown in the UI.
        reads: analyses whose stored tables the need ``tables`` gives; the plan lists them before this one.
        pictures: how they are drawn.
        judge: (rows of every table, the plan's thresholds) -> (what it is about, finding); pure. None: reported, not
            judged.
        finds: (configuration, the plan's thresholds, the removal method in use) -> ``what`` of each finding that will
            count; every one is a check of its own in Dagster. None: not known beforehand, and one check stands for all.
    """

    tables: tuple[TableSpec, ...]
    reads: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    judge: Callable[[Mapping[str, Any], Thresholds], Sequence[tuple[str, Finding]]] | None = None
    finds: Callable[[Any, Thresholds, str], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.reads) != ("tables" in self.needs):
            raise ConfigError(f"analysis {self.name}: the need 'tables' and what it reads are declared together")
        _check_pictures("analysis", self.name, self.tables, self.pictures)

    @property
    def stage(self) -> str:
        """Where its asset stands: with the audits when its tables do, else with the analyses."""
        return "audits" if self.tables[0].schema == "audits" else "analyses"


AFTER_ERASURE = {
    "drop": "its row leaves the set; the rest stays as it is",
    "rebuild": "its row leaves, and the set is chosen anew: who else is in it depended on it",
    "remake": "what was made from it and others is made anew, without it",
}
"""What has to be done with a curated set when an example of it is erased; the words are those of specs."""


@dataclass(frozen=True, kw_only=True)
class CuratorSpec(MethodSpec):
    """Builds a data set out of another. The function takes ``(data, *, config, seed, <needs>)`` and returns a
    polars.DataFrame ``(example_id int64, role str, reason str)`` that covers every training example exactly once.

    Attributes:
        roles: the roles it assigns; ("forget", "retain") for forget/retain splits.
        random: the forget set is a random share of the training examples, so that unseen examples are its peers. Of any
            other set an audit compares with retrainings without that very set.
        weighs: it returns a fourth column ``weight`` (int64): how many examples one stands for; null for those that
            stand for none.
        after_erasure: what has to be done with the set when an example of it is erased, a word of ``AFTER_ERASURE``.
            "drop" where each example's role follows from itself alone, or from a draw; else "rebuild".
    """

    roles: tuple[str, ...] = ("forget", "retain")
    random: bool = False
    weighs: bool = False
    after_erasure: Literal["drop", "rebuild"] = "rebuild"


@dataclass(frozen=True, kw_only=True)
class MakerSpec(MethodSpec):
    """Makes new examples out of the training examples: protected, distilled, aggregated ones. The function takes
    ``(data, *, config, seed, progress, <needs>)``, with ``data`` the training split, and returns a
    ``sources.made.Made``.

    Attributes:
        tables: what it says of what it made, besides; replaced as a whole for each data set (:func:`made_table`). The
            report shows the first that has rows.
        pictures: charts of them; the made examples are shown beside these without being asked for.
        after_erasure: what has to be done with the made set when examples that it was made from are erased, a word of
            ``AFTER_ERASURE``: "drop" the rows that were made from them, or "remake" the whole.
    """

    tables: tuple[TableSpec, ...] = ()
    pictures: tuple[Picture, ...] = ()
    after_erasure: Literal["drop", "remake"] = "remake"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pictures("maker", self.name, self.tables, self.pictures)
        if sheets := [p.title for p in self.pictures if not p.is_chart]:
            raise ConfigError(f"maker {self.name}: picture {sheets[0]!r} is no chart; made examples are shown anyway")


@dataclass(frozen=True, kw_only=True)
class UnlearnerSpec(MethodSpec):
    """Removes a forget set's influence. The function takes
    ``(model, *, retain, forget, config, seed, progress, <needs>) -> torch.nn.Module`` and leaves ``model`` unchanged.

    Attributes:
        exact: the result has the distribution of retraining: nothing of the forget set is in its lineage, it needs no
            shadow runs to pass, and it takes as long as retraining.
        control: it removes nothing and looks at nothing: what a comparison shows a fail by.
        concepts: it can remove a concept (``contracts.requests.Concept``) that a request names in place of rows.
        plan: what it does, said and not done: ``(model, *, retain, forget, config, seed, <needs>) ->
            unlearning.descent.Descent``, which raises what the method raises before any work. Shadow runs, which
            unlearn many models, then do them all at once (``unlearning.stacked``). None: the method is called once for
            each model.
        masked: it takes ``mask`` (``unlearning.masks``), the weights that may move: every other is in the result as it
            was in the model, to the bit. It draws the same with a mask as without one. A method that says its ``plan``
            needs no such argument: the mask is put on the plan (``unlearning.masked``).
    """

    exact: bool = False
    control: bool = False
    concepts: bool = False
    plan: Callable[..., Any] | None = None
    masked: bool = False


@dataclass(frozen=True, kw_only=True)
class AttackSpec(MethodSpec):
    """A membership attack: one score an example, LARGER = MORE LIKELY MEMBER. The function takes an
    ``attacks.membership.evidence.Evidence`` and ``config``/``seed``; it returns float64 of shape (T, N), NaN where
    undefined.

    An attack that wants "tokens" is given what the audited models say of every token (``Evidence.tokens``).

    Attributes:
        references: 0 when the attack needs no reference models, else the fewest it can work with.
        base: it reads what the model said before it was trained (``Evidence.base``).
    """

    references: int = 0
    base: bool = False


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(MethodSpec):
    """How a subject's models are trained: the audited one, early ones, reference models, shadow models and retrainings
    alike.

    The function takes ``(build, data, *, config, seed) -> torch.nn.Module``: a fresh ``build(seed)`` trained on every
    row of ``data``, the same bits for the same seed. It is also given ``checkpoints``, ``progress`` and ``device``
    ("cpu" or "cuda"; without it the recipe trains on the CPU) if it has parameters of these names. What else it can do
    it declares:

    Attributes:
        retains: what the recipe keeps of its data besides the weights (exemplars, teachers, Fisher information, ...).
        early: it takes ``stop_after``, the epochs of the full run after which it is left: the subject has early models.
        observable: it takes ``observe``, called with the rows and outputs of every mini-batch before its step.
        counts_steps: its configuration has a field ``steps``, the exact number of optimiser steps in place of the
            epochs.
        stacked: its own faster way to train many models, ``(build, data, *, config, device, members, seeds, epochs,
            inputs, progress) -> models``: for each of ``epochs`` (None is the end) a list with one model for each set
            of positions in ``members``, equal to what the recipe itself gives on these rows with that seed. It raises
            NotApplicable for a network that it cannot take. None: the recipe is called once for each model.
        structure: (build, config) -> build of what its models are loaded into, where that is not the plan's network as
            it is (adapters on it). None: the plan's network.
    """

    retains: tuple[str, ...] = ()
    early: bool = False
    observable: bool = False
    counts_steps: bool = False
    stacked: Callable[..., Any] | None = None
    structure: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a person says of their data to ``palimpsest init``; None or empty where they leave it to the source.

    Attributes:
        label, owner, id, split: the column, array, or level of folders that holds it; ``owner`` may be a table beside
            images.
        task: name of the task, "classification" or "regression".
        val: what becomes of validation rows: "drop", "train" or "test".
        drop: columns that are not used.
    """

    label: str | None = None
    owner: str | None = None
    id: str | None = None
    split: str | None = None
    task: str | None = None
    val: str | None = None
    drop: tuple[str, ...] = ()


class Reading(NamedTuple):
    """How a source would read a user's file: fields of its configuration, and for people what is left out or guessed,
    and why."""

    config: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceSpec(MethodSpec):
    """Brings real data in. The function takes ``(*, config, seed) -> sources.example_set.ExampleSet``.

    Attributes:
        detects: True when ``path`` looks like this kind of data (used by ``palimpsest init``); by content, not only by
            suffix.
        from_path: how to read a path, for ``palimpsest init``.
        self_contained: its data are a function of the configuration, the seed and the installed libraries: it reads no
            file of the user's and asks no service, so that what was read once need not be read again to know it
            unchanged.
    """

    detects: Callable[[Path], bool] | None = None
    from_path: Callable[[Path, Asked], Reading] | None = None
    self_contained: bool = False


task: Registry[TaskSpec] = Registry("task", group="palimpsest.tasks", homes=("tasks",))
score: Registry[ScoreSpec] = Registry("score", group="palimpsest.scores", homes=("scoring",))
analysis: Registry[AnalysisSpec] = Registry(
    "analysis", group="palimpsest.analyses", homes=("studies", "scoring", "attacks")
)
curator: Registry[CuratorSpec] = Registry("curator", group="palimpsest.curators", homes=("curation", "studies"))
maker: Registry[MakerSpec] = Registry("maker", group="palimpsest.makers", homes=("curation",))
unlearner: Registry[UnlearnerSpec] = Registry("unlearner", group="palimpsest.unlearners", homes=("unlearning",))
attack: Registry[AttackSpec] = Registry("attack", group="palimpsest.attacks", homes=("attacks",))
recipe: Registry[RecipeSpec] = Registry("recipe", group="palimpsest.recipes", homes=("recipes",))
source: Registry[SourceSpec] = Registry("source", group="palimpsest.sources", homes=("sources",))
REGISTRIES: tuple[Registry, ...] = (task, source, recipe, score, analysis, curator, maker, unlearner, attack)  # type: ignore[type-arg]
