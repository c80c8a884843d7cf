"""A subject: one data set + model + recipe under audit, as its ``defs.yaml`` declares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from contracts import migrations
from contracts.errors import ConfigError
from contracts.identity import check_name
from contracts.migrations import migrated
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice(Config):
    """A registered method and its configuration. In YAML a bare name stands for the defaults."""

    name: str = param(doc="registered name, or module:callable for a model")
    config: dict[str, Any] = param({}, doc="fields of the method's own configuration")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | str | None) -> Self:
        if isinstance(values, str):
            return cls(name=values)
        return super(Choice, cls).from_mapping(values)


OUTPUTS = "outputs"  # the model's name, and the source's, where there is a table of outputs and nothing else
IMPORTED = "imported/"  # artifacts of import-checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Model(Choice):
    """The model under audit: an architecture that the recipe trains; the same with weights that somebody else trained,
    which are audited as they are; or ``outputs``: a table of what a model said, and no model."""

    folder: str = param("", doc="folder of a module of one's own; searched after everything that is installed")
    checkpoint: str = param(
        "", doc="weights audited as they are: a .safetensors file, or imported/NAME; the recipe trains them when empty"
    )
    alike: int = param(
        20, ge=10, le=1000, doc="models of the stated recipe on the same rows that a given checkpoint is compared with"
    )
    inputs: str = param(
        "standardised",
        choices=("standardised", "raw"),
        doc="what the model is given: values scaled as the source says, or as they are stored",
    )

    def check(self) -> None:
        if self.checkpoint and self.name == OUTPUTS:
            raise ConfigError(f"model {OUTPUTS} is a table of outputs: it has no weights, so no checkpoint")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split(Config):
    """A named forget/retain split made by a registered curator."""

    name: str = param(doc="name of the split")
    method: str = param(doc="registered curator", ref="curator")
    config: dict[str, Any] = param({}, doc="fields of the curator's configuration")

    def check(self) -> None:
        check_name(self.name, kind="split")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset(Config):
    """A named data set of new examples, made out of the training examples by a registered maker."""

    name: str = param(doc="name of the data set")
    method: str = param(doc="registered maker", ref="maker")
    config: dict[str, Any] = param({}, doc="fields of the maker's configuration")

    def check(self) -> None:
        check_name(self.name, kind="data set")


@dataclass(frozen=True, kw_only=True, slots=True)
class Early(Config):
    """The early checkpoints that EL2N and GraNd read (Paul et al. 2021): R seeds stopped at one epoch of the full
    recipe."""

    seeds: int = param(10, ge=1, le=1000, doc="independent initialisations R")
    epoch: int = param(3, ge=0, le=100_000, doc="epochs trained before scoring; 0 is uninformative")


RETRAIN, ADAPTERS, GIVEN, NO_REFERENCES = "retrain", "adapters", "given", "none"  # policies
_EACH_SIDE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy(Choice):
    """How reference models come about. In YAML a bare name stands for the defaults.

    retrain   the plan's recipe, on random halves of the pool
    adapters  low-rank adapters on one base that never saw the pool's rows, each trained on its half: for models that
              are too large to be trained M times
    given     models that somebody else trained, with a table that says which rows each of them saw
    none      there are none: what reads reference models is refused as the plan loads
    """

    name: str = param(RETRAIN, choices=(RETRAIN, ADAPTERS, GIVEN, NO_REFERENCES), doc="of the policy")
    config: dict[str, Any] = param(
        {}, doc="adapters: fields of the configuration of the recipe lora, where the plan's recipe is another one"
    )
    folder: str = param("", doc="given: folder of safetensors of the plan's model, MODEL.safetensors each")
    members: str = param(
        "", doc="given: CSV, Parquet or JSON lines with columns model and example_id: a row an example that it saw"
    )
    each_side: int = param(
        _EACH_SIDE,
        ge=2,
        le=50_000,
        unit="models",
        doc="given: an example that fewer saw, or fewer did not see, is left out of the pool",
    )

    def check(self) -> None:
        of_given = {"folder": self.folder, "members": self.members}
        if self.name == GIVEN and not all(of_given.values()):
            missing = ", ".join(name for name, value in of_given.items() if not value)
            raise ConfigError(f"policy {GIVEN} needs {missing}: a folder of safetensors, and the table of their rows")
        if self.name != GIVEN and any(of_given.values()):
            set_ = ", ".join(name for name, value in of_given.items() if value)
            raise ConfigError(f"policy {self.name} has no {set_}: only {GIVEN} reads reference models from files")
        if self.config and self.name != ADAPTERS:
            raise ConfigError(f"policy {self.name} has no config: only {ADAPTERS} has one")
        if self.name != GIVEN and self.each_side != _EACH_SIDE:
            raise ConfigError(
                f"policy {self.name} has no each_side: every example of the pool is in half of its models"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble(Config):
    """The reference ensemble: M models on parts of the pool, by default copies of the recipe on random halves (Carlini
    et al. 2022)."""

    num_models: int = param(
        64,
        ge=4,
        le=100_000,
        doc="M, even: each pool example is in exactly M/2 models; of given ones, how many there are",
    )
    pool_size: int | None = param(None, ge=20, doc="examples in the pool; all when not given")
    population_fraction: float = param(
        0.5, gt=0, lt=1, doc="share of the test split kept out of every model (RMIA's z points)"
    )
    block: int = param(16, ge=1, le=4096, doc="models trained and stored at a time; the unit of resumption")
    policy: Policy = param(Policy(), added=True, doc="how they come about: retrain, adapters, given or none")

    @property
    def each_side(self) -> int:
        """Models that saw an example of the pool, and models that did not: at least so many of either."""
        given = self.policy.name == GIVEN
        return self.policy.each_side if given else self.num_models // 2

    def check(self) -> None:
        if self.policy.name == GIVEN:
            if 2 * self.policy.each_side > self.num_models:
                raise ConfigError(
                    f"Ensemble.policy.each_side = {self.policy.each_side} must be at most half of num_models = "
                    f"{self.num_models}"
                )
            if self.pool_size is not None:
                raise ConfigError(
                    f"Ensemble.pool_size = {self.pool_size} is for models trained here: of given ones the table of "
                    "members says which examples are in the pool"
                )
        elif self.num_models % 2:
            raise ConfigError(
                f"Ensemble.num_models = {self.num_models} must be even: each example is in exactly half of the models"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds(Config):
    """What counts as a pass. A verdict needs the whole interval on one side; otherwise it is inconclusive."""

    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of every interval")
    max_auc: float = param(0.60, gt=0.5, lt=1, doc="largest tolerated attack AUC on forgotten examples")
    max_target_auc: float | None = param(
        None, gt=0.5, lt=1, doc="largest tolerated attack AUC on the audited model itself; null: reported, not judged"
    )
    max_umia: float = param(0.60, gt=0.5, lt=1, doc="largest tolerated accuracy of the population attack, max(a, 1-a)")
    max_gap: float = param(5.0, ge=0, le=100, unit="points", doc="largest tolerated average gap to retraining")
    max_quality_loss: float = param(
        3.0,
        ge=0,
        le=100,
        unit="points",
        doc="quality (accuracy for classes) on retained or on test examples that may be lost against retraining",
    )
    max_trace: float = param(
        0.20,
        gt=0,
        lt=1,
        doc="share of the untouched model's trace of a set that is not random that may be left, by its 1 - alpha bound",
    )
    max_example_auc: float = param(
        0.92,
        gt=0.5,
        lt=1,
        doc="AUC at which one removed example must have been found for 'no example stands out' to pass",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance(Config):
    """What a removal method has to pass before forget requests may use it: this subject's worst case.

    Retrainings without that very set are what it is judged by, whatever the set. Exact retraining needs no acceptance
    and is what is left when no method is accepted.
    """

    split: str = param(doc="name of the split that a method has to pass on; not a random one", ref="split")
    then: tuple[str, ...] = param(
        (), doc="methods tried in this order where the one in use is not accepted; exact retraining comes last"
    )
    thresholds: Thresholds | None = param(None, doc="limits of the acceptance; null: those of the plan")

    def check(self) -> None:
        if len(set(self.then)) < len(self.then):
            raise ConfigError(f"unlearning.acceptance.then = {list(self.then)} lists a method twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlearning(Config):
    """Which removal methods are compared, on which split, over how many seeds."""

    split: str = param("random", doc="name of the split whose forget role is removed", ref="split")
    methods: tuple[Choice, ...] = param(
        doc="registered unlearners; the controls 'none' and 'retrain' are always run", ref="unlearner"
    )
    seeds: int = param(3, ge=1, le=100, doc="repeats; every figure carries their spread")
    decides: str = param(
        "retrain",
        doc="the method in use: its verdict decides the audit, the others are compared with it",
        ref="unlearner",
    )
    retrainings: int = param(
        20,
        ge=20,
        le=10_000,
        doc="retrainings without the very set that a set which is not random, or a request, is judged against",
    )
    closure: bool = param(
        False, doc="a forget request also removes the near duplicates of what it names; they are counted in any case"
    )

    closing: str = param(
        "audit",
        choices=("audit", "retrained"),
        doc="what closes a forget request: 'audit', a pass, or a person where it is inconclusive; 'retrained' accepts "
        "beside it that every model was trained from scratch on data without its rows, with proof of that",
    )
    acceptance: Acceptance | None = param(
        None,
        doc="what a method that is not exact has to pass before forget requests may use it; null: nothing",
        added=True,
    )

    def check(self) -> None:
        names = {"none", "retrain", *(m.name for m in self.methods)}
        asked = {"decides": (self.decides,), "acceptance.then": self.acceptance.then if self.acceptance else ()}
        for field, methods in asked.items():
            for name in methods:
                if name not in names:
                    raise ConfigError(
                        f"unlearning.{field} = {name!r} is not among its methods: {', '.join(sorted(names))}"
                    )
        if self.acceptance and self.decides in self.acceptance.then:
            raise ConfigError(f"unlearning.acceptance.then lists {self.decides!r}, which is tried first in any case")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject(Config):
    """Everything an audit needs to know. Its digest is part of every row's provenance."""

    schema_version: int = param(
        migrations.CURRENT,
        ge=migrations.CURRENT,
        le=migrations.CURRENT,
        doc="of what a plan may say; older plans are brought to the current one as they are read",
    )
    subject: str = param(doc="name; part of every asset key")
    title: str = param("", doc="one line for people")
    previews: bool = param(
        False,
        added=True,
        doc="Dagster's pages show pictures of examples and names of classes, which its event log then holds",
    )
    source: Choice = param(doc="where the data comes from", ref="source")
    without: tuple[int, ...] = param(
        (),
        ge=0,
        doc="ids of examples that are left out whatever the source holds: erased ones, where it cannot be changed",
        added=True,
    )
    without_edges: tuple[tuple[int, int], ...] = param(
        (),
        doc="pairs of ids of nodes whose edge is left out whatever the source holds: of a graph, erased ones",
        added=True,
    )
    model: Model = param(doc="the architecture: mlp, cnn, resnet_gn, vit, or module:callable; or outputs")
    recipe: Choice = param(Choice(name=""), doc="how it is trained; nothing where there are only outputs", ref="recipe")
    seed: int = param(0, ge=0, lt=2**31, doc="root of every random choice")
    device: str = param("auto", choices=("auto", "cpu", "cuda"), doc="auto takes CUDA when there is one")
    early: Early = param(Early())
    ensemble: Ensemble = param(Ensemble())
    scores: tuple[Choice, ...] = param(())
    analyses: tuple[Choice, ...] = param(())
    splits: tuple[Split, ...] = param(())
    datasets: tuple[Dataset, ...] = param((), added=True)
    unlearning: Unlearning | None = param(None)
    attacks: tuple[Choice, ...] = param((), ref="attack")
    thresholds: Thresholds = param(Thresholds())
    budget_min: float | None = param(
        None,
        gt=0,
        unit="min",
        doc="that a first audit, or a forget request, may take on two cores; said before, and when it took longer",
    )
    schedule: str | None = param("0 6 * * 1", doc="cron of the repeated audit, UTC; null for none")
    owners: tuple[str, ...] = param(("team:privacy",), doc="Dagster owners of the assets")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | None) -> Self:
        """As of any configuration; a plan of an earlier version is migrated, one of a later version refused."""
        return super(Subject, cls).from_mapping(migrated(values) if isinstance(values, Mapping) else values)

    @property
    def outputs_only(self) -> bool:
        """There is a table of a model's outputs, and no model."""
        return self.model.name == OUTPUTS

    def check(self) -> None:
        check_name(self.subject, kind="subject")
        if f"{self.subject}/" == IMPORTED:
            raise ConfigError(f"subject {self.subject!r}: that is where imported checkpoints lie; give another name")
        if self.outputs_only != (self.source.name == OUTPUTS):
            raise ConfigError(f"subject {self.subject}: source {OUTPUTS} and model {OUTPUTS} go together")
        if self.outputs_only and (self.recipe.name or self.unlearning):
            raise ConfigError(f"subject {self.subject}: recipe and unlearning need a model; there are only its outputs")
        if self.outputs_only and self.ensemble.policy.name in (ADAPTERS, GIVEN):
            raise ConfigError(
                f"subject {self.subject}: ensemble.policy {self.ensemble.policy.name} needs a model; there are only "
                "its outputs, so leave it out"
            )
        if not self.outputs_only and not self.recipe.name:
            raise ConfigError(f"subject {self.subject} needs recipe: how its models are trained")
        if self.model.checkpoint and self.unlearning and self.unlearning.closing == "retrained":
            raise ConfigError(
                f"subject {self.subject}: unlearning.closing 'retrained' proves that no model holds the rows, and a "
                "given checkpoint is never trained again; leave closing, or the checkpoint, out"
            )
        for kind, names in (
            ("score", [c.name for c in self.scores]),
            ("analysis", [c.name for c in self.analyses]),
            ("split or data set", [s.name for s in self.splits] + [d.name for d in self.datasets]),
            ("attack", [c.name for c in self.attacks]),
            ("unlearner", [c.name for c in self.unlearning.methods] if self.unlearning else []),
        ):
            doubled = sorted({n for n in names if names.count(n) > 1})
            if doubled:
                raise ConfigError(f"subject {self.subject}: {kind} {', '.join(doubled)} is listed twice")
        for field, split in self._splits_of_unlearning().items():
            if split not in {s.name for s in self.splits}:
                raise ConfigError(
                    f"subject {self.subject}: unlearning.{field} {split!r} is not among its splits: "
                    f"{', '.join(s.name for s in self.splits) or '(none)'}"
                )

    def _splits_of_unlearning(self) -> dict[str, str]:
        """Field below ``unlearning`` -> split that it names."""
        if self.unlearning is None:
            return {}
        accepted = {"acceptance.split": self.unlearning.acceptance.split} if self.unlearning.acceptance else {}
        return {"split": self.unlearning.split} | accepted
