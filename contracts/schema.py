"""The tables of the warehouse that no single method owns. Score tables come from the scores' own declarations."""

from __future__ import annotations

from contracts import erasure, leaderboard
from contracts.methods import DATASET_ID, EXAMPLE_ID, MADE_ID
from contracts.tables import Column, TableSpec

_VERDICTS = ("pass", "fail", "inconclusive", "broken")


def _text(name: str, doc: str, **more: object) -> Column:
    return Column(name=name, dtype="str", doc=doc, **more)  # type: ignore[arg-type]


def _share(name: str, doc: str, **more: object) -> Column:
    return Column(name=name, dtype="float64", doc=doc, low=0.0, high=1.0, **more)  # type: ignore[arg-type]


def _percent(name: str, doc: str) -> Column:
    return Column(name=name, dtype="float64", doc=doc, unit="percent", low=0.0, high=100.0, nullable=True)


def _points(name: str, doc: str) -> Column:
    return Column(name=name, dtype="float64", doc=doc, unit="points", low=-100.0, high=100.0, nullable=True)


def _count(name: str, doc: str, **more: object) -> Column:
    return Column(name=name, dtype="int64", doc=doc, low=0, **more)  # type: ignore[arg-type]


def _time(name: str, doc: str, **more: object) -> Column:
    return Column(name=name, dtype="timestamp", doc=doc, unit="UTC", **more)  # type: ignore[arg-type]


_SEED = Column(name="seed", dtype="int64", doc="seed of the audited model: every model is judged on its own", low=0)

EXAMPLES = TableSpec(
    schema="data",
    name="examples",
    doc="Every example of a subject's data set.",
    version=2,
    key=("example_id",),
    min_rows=1,
    columns=(
        EXAMPLE_ID,
        _text("split", "train or test", choices=("train", "test")),
        Column(name="label", dtype="int64", doc="class index; null for regression", low=0, nullable=True),
        _text("label_name", "class name; empty for regression"),
        Column(name="target", dtype="float64", doc="regression target; null for classification", nullable=True),
        _text("owner", "salted token of whose data it is; empty for nobody's"),
        _text("content_hash", "SHA-256 of the example's raw values"),
        _text(
            "origin",
            "where it lies in its source: a file's path below the root, a row of a table, a place in an array; as the "
            "source names it, so with what people's file names say, an owner's folder as the token; null where the "
            "source has none",
            nullable=True,
        ),
    ),
)

COLUMNS = TableSpec(
    schema="data",
    name="columns",
    doc="What is known of each example beside its values, label and owner: step, domain, client, group and whatever "
    "else the source keeps; a row an example and column, none where the source keeps none.",
    key=("name", "example_id"),
    columns=(
        EXAMPLE_ID,
        _text("name", "name of the column, as the plan's source keeps it"),
        _text("value", "its value as text; try_cast(value AS BIGINT) orders numbers; an owner's name as the token"),
    ),
)

CHECKPOINTS = TableSpec(
    schema="models",
    name="checkpoints",
    version=2,
    doc="Models of a subject: target (trained, or given), early, unlearned.",
    key=("artifact_id",),
    partition=("role",),
    columns=(
        _text("artifact_id", "id in lineage.artifacts"),
        _text("role", "target, early, or unlearned/<split>/<method>"),
        _text("recipe", "the recipe that the plan names; empty where there is none or the model was given"),
        Column(name="seed", dtype="int64", doc="seed of the training"),
        _count("epochs", "epochs trained here; 0 for a model that was given"),
        _count("num_parameters", "trainable parameters"),
        Column(
            name="train_loss",
            dtype="float64",
            doc="mean loss on the training split, in the unit of the task's loss (nats for classes)",
            nullable=True,
        ),
        _share("train_quality", "mean quality on the training split: accuracy, or what the task counts", nullable=True),
        _share("test_quality", "mean quality on the test split", nullable=True),
        _text(
            "retains",
            "what the recipe keeps of its data besides the weights, joined by commas; empty: nothing; null: not "
            "trained here",
            nullable=True,
        ),
        Column(name="wall_s", dtype="float64", doc="wall time of the training", unit="s", low=0, volatile=True),
    ),
)

SCORE_RUNS = TableSpec(
    schema="scores",
    name="runs",
    doc="One row a score: did its run meet the score's gates.",
    key=("score",),
    partition=("score",),
    columns=(
        _text("score", "name of the score"),
        _count("num_examples", "examples scored"),
        Column(name="passed", dtype="bool", doc="all gates met; scores.latest shows only these"),
        _text("reason", "which gate failed and why; empty when passed"),
        _text("higher_means", "what a high value means"),
        Column(name="wall_s", dtype="float64", doc="wall time", unit="s", low=0, volatile=True),
    ),
)

DATASETS = TableSpec(
    schema="curation",
    name="datasets",
    doc="Data sets built by curation.",
    key=("dataset_id",),
    partition=("dataset_id",),
    columns=(
        DATASET_ID,
        _text("method", "curator"),
        _count("num_examples", "members of all roles"),
        _text("digest", "SHA-256 over (example_id, role), ordered by id"),
        Column(name="config", dtype="json", doc="configuration of the curator"),
    ),
)

MEMBERS = TableSpec(
    schema="curation",
    name="members",
    doc="Which example has which role in which curated data set.",
    key=("dataset_id", "example_id"),
    partition=("dataset_id",),
    columns=(
        DATASET_ID,
        EXAMPLE_ID,
        _text("role", "forget, retain, keep, drop, ..."),
        _text("reason", "why it has this role"),
    ),
)

WEIGHTS = TableSpec(
    schema="curation",
    name="weights",
    doc="How many examples one stands for that a curated set keeps, where its curator says so.",
    key=("dataset_id", "example_id"),
    partition=("dataset_id",),
    columns=(
        DATASET_ID,
        EXAMPLE_ID,
        _count("weight", "examples that it stands for, itself included"),
    ),
)

DRAWN_FROM = TableSpec(
    schema="curation",
    name="drawn_from",
    doc="Which examples a made example was computed from.",
    key=("dataset_id", "made_id", "example_id"),
    partition=("dataset_id",),
    columns=(DATASET_ID, MADE_ID, EXAMPLE_ID),
)

METRICS = {
    "ua": "unlearning accuracy: 100 - accuracy on the forget set",
    "ra": "accuracy on the retain set",
    "ta": "accuracy on the test split",
    "mia_efficacy": "share of the forget set that an SVM on confidences calls non-member",
    "mia_correctness": "as mia_efficacy, on correctness",
    "mia_entropy": "as mia_efficacy, on entropy",
    "mia_m_entropy": "as mia_efficacy, on modified entropy",
    "mia_prob": "as mia_efficacy, on all probabilities",
    "gap_ua": "|ua - ua of retraining|, same seed",
    "gap_ra": "|ra - ra of retraining|",
    "gap_ta": "|ta - ta of retraining|",
    "gap_mia": "|mia_efficacy - that of retraining|",
    "avg_gap": "mean of the four gaps, its interval within the seed, paired by example; lower is closer to retraining",
    "ra_lost": "accuracy on retained examples lost against this seed's retraining, its interval paired",
    "ta_lost": "the same on test examples",
    "loss_forget": "of texts: mean loss of the forget set, nats a token; far above retraining's it is ruin",
    "loss_retain": "of texts: the same of the retain set; never read one without the other",
    "loss_test": "of texts: the same of the test split",
    "mae_forget": "of numbers: mean absolute error on the forget set, in the target's unit; nearer to retraining's is "
    "better, a larger one is not",
    "mae_retain": "of numbers: the same on the retain set",
    "mae_test": "of numbers: the same on the test split",
    "w1": "of numbers: Wasserstein-1 distance of the predictions on the forget set to those of retraining, same seed, "
    "in the target's unit",
    "mia_member": "of numbers: share of the forget set that an SVM on the absolute error calls member",
    "relearn_batches": "of numbers: steps on all training examples until the error on the forget set is the audited "
    "model's again, to 5%; none where it is not within ten epochs",
    "ain": "of numbers: anamnesis index, relearn_batches over retraining's (all of ten epochs where one does not get "
    "there; none where neither does); near 0 = the knowledge is still there, 1 = as retraining",
    "retrain_spread": "mean avg_gap between this seed's retraining and those of the other seeds; of more than one seed",
}
"""The metrics of classifiers in ``unlearning.metrics``, in percent or percentage points; other tasks may add theirs."""
INTERVALS = ("avg_gap", "ra_lost", "ta_lost")  # those with bounds

_OF_A_RUN = (
    _text("split", "forget/retain split, or request id"),
    _text("method", "unlearner; 'none' is the untouched model"),
    Column(name="seed", dtype="int64", doc="seed of the run"),
)

UNLEARNING_RUNS = TableSpec(
    schema="unlearning",
    name="runs",
    version=3,
    doc="One row a method x split x seed: what was done, and how it ended. What was measured is in unlearning.metrics.",
    key=("split", "method", "seed"),
    partition=("split", "method"),
    columns=(
        *_OF_A_RUN,
        _count("num_forget", "forgotten examples"),
        _count("num_retain", "retained examples"),
        _text("kind", "how the forget set was chosen: random, or by what"),
        Column(name="wall_s", dtype="float64", doc="wall time of the unlearning call", unit="s", low=0, volatile=True),
        Column(
            name="rte",
            dtype="float64",
            doc="run-time efficiency: wall minutes of the unlearning call",
            unit="min",
            low=0,
            volatile=True,
        ),
        _text(
            "status",
            "ok; diverged; or refused: what came back is not a model of this plan",
            choices=("ok", "diverged", "refused"),
        ),
        _text("reason", "why not; empty when ok"),
    ),
)

ACCEPTANCE = TableSpec(
    schema="unlearning",
    name="acceptance",
    doc="Which removal methods forget requests may use, of those that are not exact: what passes on the worst case.",
    key=("method",),
    columns=(
        _text("method", "unlearner that forget requests would use"),
        _count("place", "order in which a request tries it, from 0"),
        _text("split", "the set that it had to pass on"),
        Column(name="accepted", dtype="bool", doc="it passed: forget requests may use it"),
        _text("verdict", "pass, fail, inconclusive or broken"),
        _text("what", "the finding that decided"),
        _text("sentence", "why"),
    ),
)

UNLEARNING_METRICS = TableSpec(
    schema="unlearning",
    name="metrics",
    doc="What was measured of each unlearning run, a row a metric (Fan et al., ICLR 2024); unlearning.wide has a row "
    "a run. A metric that is not defined, and any metric of a run that is not ok, has no row.",
    key=("split", "method", "seed", "metric"),
    partition=("split", "method"),
    columns=(
        *_OF_A_RUN,
        _text("metric", "what was measured: " + "; ".join(f"{name}, {words}" for name, words in METRICS.items())),
        Column(
            name="value",
            dtype="float64",
            doc="figure, in percent or percentage points; losses in nats a token; errors and w1 in the target's unit; "
            "batches; ain a ratio",
        ),
        Column(name="low", dtype="float64", doc="lower bound; null for a metric without an interval", nullable=True),
        Column(name="high", dtype="float64", doc="upper bound", nullable=True),
    ),
)

ATTACK_SCORES = TableSpec(
    schema="audits",
    name="attack_scores",
    version=2,
    doc="One row an example x attack x audited model. Larger = more likely a member.",
    key=("audited", "attack", "seed", "example_id"),
    partition=("audited", "attack"),
    columns=(
        _text("audited", "target, or <split>/<method>"),
        _text("attack", "attack"),
        _SEED,
        EXAMPLE_ID,
        Column(
            name="score",
            dtype="float64",
            doc="attack score; null where undefined",
            nullable=True,
            direction="larger = more likely a member",
        ),
        Column(
            name="is_member", dtype="bool", doc="truth: was in training (target) or is in the forget set (unlearned)"
        ),
        _count("n_in", "reference models trained with it", nullable=True),
        _count("n_out", "reference models trained without it", nullable=True),
    ),
)

ATTACK_REPORTS = TableSpec(
    schema="audits",
    name="attack_reports",
    version=2,
    doc="Attack results with exact intervals. One row an audited model (seed) and false-positive cap.",
    key=("audited", "attack", "seed", "fpr_cap"),
    partition=("audited", "attack"),
    columns=(
        _text("audited", "target, or <split>/<method>"),
        _text("attack", "attack"),
        _SEED,
        _count("n_pos", "members tested"),
        _count("n_neg", "non-members tested"),
        _share("auc", "area under the ROC curve (Mann-Whitney, ties half)"),
        _share("auc_lo", "lower bound, DeLong"),
        _share("auc_hi", "upper bound, DeLong"),
        _share("balanced_acc", "best balanced accuracy on the same examples (optimistic)"),
        _share("balanced_acc_heldout", "balanced accuracy at a threshold chosen on the other half", nullable=True),
        _share("balanced_acc_heldout_lo", "lower bound", nullable=True),
        _share("balanced_acc_heldout_hi", "upper bound", nullable=True),
        _share("fpr_cap", "largest tolerated false-positive rate a"),
        _share("tpr", "best true-positive rate with empirical FPR <= a; null when a * n_neg < 1", nullable=True),
        _share("tpr_lo", "lower bound, Clopper-Pearson", nullable=True),
        _share("tpr_hi", "upper bound, Clopper-Pearson", nullable=True),
        _share("fpr", "achieved false-positive rate", nullable=True),
        _share("fpr_lo", "lower bound, Clopper-Pearson", nullable=True),
        _share("fpr_hi", "upper bound, Clopper-Pearson", nullable=True),
        Column(name="reliable", dtype="bool", doc="a * n_neg >= 10"),
    ),
)

UNSEEN = TableSpec(
    schema="audits",
    name="unseen",
    doc="What each attack finds between the training and the test split on reference models that saw neither: 0.5 "
    "where the two differ in nothing but membership.",
    key=("attack",),
    partition=("attack",),
    columns=(
        _text("attack", "attack; one that reads what was not kept of reference models stands here by the loss"),
        _count("num_models", "reference models, each asked of the examples that it was not trained on"),
        _count("n_train", "fewest of these examples in the training split"),
        _count("n_test", "fewest in the test split"),
        _share("auc", "training split against test split, mean over models"),
        _share("auc_lo", "lower bound, clustered by model and by example"),
        _share("auc_hi", "upper bound"),
        _share("p_value", "of: no more of the training split stand out at low false-positive rates than chance allows"),
    ),
)

FINDINGS = TableSpec(
    schema="audits",
    name="findings",
    version=4,
    key=("stage", "about", "what"),
    partition=("stage",),
    doc="Verdicts with the sentence that explains each. The report, the exit status and the checks read these rows, by "
    "stage.",
    columns=(
        _text("verdict", "pass, fail, inconclusive or broken", choices=_VERDICTS),
        _text("sentence", "why"),
        _text("about", "target, <split>/<method>, shadow/<method>, or what another audit names"),
        _text("what", "what was judged"),
        _text("method", "unlearning method it is about; empty for none"),
        _text(
            "kind",
            "attack, quality, distance, result, coverage, concept, protection; empty where nobody said",
        ),
        Column(name="value", dtype="float64", doc="figure", nullable=True),
        Column(name="low", dtype="float64", doc="lower bound", nullable=True),
        Column(name="high", dtype="float64", doc="upper bound", nullable=True),
        Column(name="threshold", dtype="float64", doc="threshold of the plan", nullable=True),
        Column(
            name="judged", dtype="bool", doc="counts; false: a control, a method compared, or shown for information"
        ),
        _text("stage", "the asset that judged, joined by /: an audit's or a forget request's findings"),
    ),
)


def _deviations(name: str, doc: str, **more: object) -> Column:
    return Column(name=name, dtype="float64", doc=doc, unit="standard deviations", **more)  # type: ignore[arg-type]


AGAINST_RETRAINING = TableSpec(
    schema="audits",
    name="against_retraining",
    key=("audited", "seed"),
    partition=("audited",),
    doc="Unlearned models of a set that is not random, against retrainings without that very set: one row a model.",
    columns=(
        _text("audited", "<split>/<method>"),
        _SEED,
        _count("num_examples", "forgotten examples"),
        _count("num_retrainings", "retrainings without them, other seeds"),
        _deviations("shift", "how much better the set is known than after retraining", direction="0 = forgotten"),
        _deviations("shift_lo", "lower bound"),
        _deviations("shift_hi", "upper bound"),
        _deviations("spread", "of the same figure over the retrainings", low=0),
        _share("p_value", "two-sided, of 'one more retraining'"),
        _count("standing_out", "examples that differ from their own retrainings after Holm's correction"),
        Column(name="beyond", dtype="bool", doc="the furthest example lies further than any of any retraining"),
        _deviations("detectable", "from which on one example is significant", low=0),
        _deviations("trace", "shift of the untouched model: what there was to forget"),
        _share("alpha", "1 - level of the interval"),
        _share("level", "level of a failure"),
    ),
)

RECIPE_MATCH = TableSpec(
    schema="audits",
    name="recipe_match",
    key=("num_models",),
    doc="A model that was given (the audited one, or a reference model), beside models of the stated recipe on the "
    "same training rows, on examples that no model was trained on. Attacks with reference models say something only "
    "where it could be one of them.",
    columns=(
        _count("num_models", "models of the stated recipe, other seeds"),
        _count("num_examples", "unseen examples"),
        _share("accuracy", "accuracy of the given model"),
        _share("recipe_accuracy", "mean accuracy of the recipe's"),
        _share("recipe_accuracy_sd", "standard deviation over the recipe's"),
        Column(
            name="likeness",
            dtype="float64",
            low=-1,
            high=1,
            doc="rank correlation of the log-odds of the label with the mean of the recipe's",
        ),
        Column(name="recipe_likeness", dtype="float64", low=-1, high=1, doc="mean of the recipe's with the others'"),
        _share("detectable", "smallest difference of accuracy that would have been found"),
        _share("p_value", "of 'one more model of the recipe', both figures together"),
    ),
)

BASELINE = TableSpec(
    schema="audits",
    name="baseline",
    doc="Values of the last audit, which the next one is compared with: every score, and every attack's score of the "
    "audited model as attack:NAME.",
    key=("score", "example_id"),
    partition=("score",),
    columns=(
        _text("score", "the score, or attack:NAME"),
        EXAMPLE_ID,
        Column(name="value", dtype="float64", doc="its value in the last audit"),
    ),
)

DRIFT = TableSpec(
    schema="audits",
    name="drift",
    doc="Whether scores and exposures moved between the last two audits: a paired test on the same examples.",
    key=("score",),
    columns=(
        _text("score", "the score, or attack:NAME"),
        _count("num_examples", "examples with a value in both audits"),
        _count("num_others", "examples with a value in one of them; not compared"),
        _share("distance", "Kolmogorov-Smirnov distance; null of a score that is new", nullable=True),
        _share("p_value", "of 'it has not moved'", nullable=True),
        _share("p_holm", "corrected for the number of scores (Holm)", nullable=True),
        Column(
            name="moved", dtype="bool", doc="an alarm: the corrected p-value and the distance are beyond their limits"
        ),
    ),
)

CERTIFICATES = TableSpec(
    schema="certificates",
    name="issued",
    doc="Certificates of forget requests, each a signed file; the last of a request takes the place of all before it.",
    key=("request_id", "serial"),
    partition=("request_id", "serial"),
    columns=(
        _text("request_id", "the request"),
        _count("serial", "of this request's certificates, from 1"),
        _text("method", "the removal method in use"),
        _text("verdict", "what it states", choices=_VERDICTS),
        _text("artifact", "name of the signed file"),
        _text("report_sha256", "of the report that it is about", volatile=True),
        _text("sha256", "of the signed file", volatile=True),
        _text("key_id", "of the key that signed it", volatile=True),
        _time("issued_at", "when", volatile=True),
        _time("expires_at", "until when it may be relied on", volatile=True),
    ),
)

REGISTER = TableSpec(
    schema="requests",
    name="register",
    doc="Forget requests and where each stands.",
    key=("request_id",),
    partition=("request_id",),
    columns=(
        _text("request_id", "id, also the Dagster partition key"),
        _text("state", "where the request stands"),
        _text("selector", "ids, owner, class, where, score, neighbourhood, edge or concept"),
        Column(name="request", dtype="json", doc="the request as received"),
        _text("legal_basis", "as stated"),
        _time("received_at", "receipt"),
        _time("due_at", "one month after receipt unless extended"),
        _count("num_examples", "examples in scope once scoped; null of a concept", nullable=True),
    ),
)

REQUEST_EVENTS = TableSpec(
    schema="requests",
    name="events",
    doc="Every change of state of a request, in order.",
    key=("request_id", "seq"),
    partition=("request_id",),
    columns=(
        _text("request_id", "request"),
        _count("seq", "order within the request"),
        _text("state", "state entered"),
        _text("note", "why, by whom"),
        _time("at", "when", volatile=True),
    ),
)

REQUEST_PINS = TableSpec(
    schema="requests",
    name="pins",
    doc="The examples that a request named when it was registered; a run on others is refused.",
    key=("request_id", "example_id"),
    partition=("request_id",),
    columns=(
        _text("request_id", "request"),
        EXAMPLE_ID,
        _text("split", "train or test", choices=("train", "test")),
        _text("pin", "HMAC-SHA256 of id, owner, label and content hash under the salt"),
    ),
)

REQUEST_BATCHES = TableSpec(
    schema="requests",
    name="batches",
    doc="Requests whose rows are removed together, by one unlearning; each is judged and certified by itself.",
    key=("request_id",),
    partition=("request_id",),
    columns=(
        _text("request_id", "request"),
        _text("batch", "SHA-256 over the ids of the requests that were put together"),
    ),
)

ERASURES = TableSpec(
    schema="requests",
    name="erasures",
    doc="What was erased for a forget request: a row an item of its plan, with what proves that it was done.",
    key=("request_id", "seq"),
    partition=("request_id",),
    columns=(
        _text("request_id", "request"),
        _count("seq", "order in which the items are carried out"),
        _text("kind", "what it is: " + ", ".join(erasure.KINDS), choices=erasure.KINDS),
        _text("place", "artefact, table, file or folder"),
        Column(name="part", dtype="json", doc="partition of the table; {} of anything else"),
        _text("asset", "asset whose result it is; empty of what no asset made"),
        _text(
            "action",
            "; ".join(f"{action.value}: {words}" for action, words in erasure.ACTIONS.items()),
            choices=tuple(action.value for action in erasure.Action),
        ),
        _text("why", "why that"),
        _count("num_examples", "examples of the request that it held, by id; 0 where they cannot be counted"),
        Column(name="note", dtype="json", doc="what carrying it out needs besides"),
        _text("state", "planned; done; open: to be done by a person", choices=erasure.STATES),
        _text(
            "proof", "of what is left: SHA-256 of the rows or file, 'gone', or what was counted; empty while planned"
        ),
        _time("at", "when it was done, or planned", volatile=True),
    ),
)

ARTIFACTS = TableSpec(
    schema="lineage",
    name="artifacts",
    doc="Everything made: table partitions, checkpoints, ensembles, reports.",
    key=("artifact_id",),
    partition=("asset",),
    columns=(
        _text("artifact_id", "id"),
        _text("asset", "asset that made it, joined by /"),
        _text("kind", "table, safetensors, html, json"),
        _text("location", "table name, or path under the state folder"),
        _text("sha256", "digest of the content"),
        _count("size_bytes", "size on disk; 0 for tables"),
        _text("key", "idempotence key it was made under"),
        _time("created_at", "when", volatile=True),
    ),
)

EDGES = TableSpec(
    schema="lineage",
    name="edges",
    doc="Which artefact was made from which.",
    key=("child", "parent"),
    partition=("child",),
    columns=(_text("child", "asset made, joined by /"), _text("parent", "asset it was made from, joined by /")),
)

LINEAGE_MEMBERS = TableSpec(
    schema="lineage",
    name="members",
    doc="Which set of examples an artefact was made from.",
    version=2,
    key=("asset",),
    partition=("asset",),
    columns=(_text("asset", "asset, joined by /"), _text("set_id", "the set, in lineage.sets")),
)

LINEAGE_SETS = TableSpec(
    schema="lineage",
    name="sets",
    doc="Sets of examples, each stored once however many assets were made from it, as runs of consecutive ids.",
    key=("set_id", "first_id"),
    partition=("set_id",),
    columns=(
        _text("set_id", "SHA-256 of the ids in ascending order"),
        Column(name="first_id", dtype="int64", doc="first example id of the run", low=0),
        Column(name="last_id", dtype="int64", doc="last example id of the run, inclusive", low=0),
    ),
)

TABLES: tuple[TableSpec, ...] = (
    EXAMPLES,
    COLUMNS,
    CHECKPOINTS,
    SCORE_RUNS,
    DATASETS,
    MEMBERS,
    WEIGHTS,
    DRAWN_FROM,
    UNLEARNING_RUNS,
    UNLEARNING_METRICS,
    ACCEPTANCE,
    leaderboard.SUMMARY,
    leaderboard.EXAMPLES,
    ATTACK_SCORES,
    ATTACK_REPORTS,
    UNSEEN,
    AGAINST_RETRAINING,
    RECIPE_MATCH,
    FINDINGS,
    BASELINE,
    DRIFT,
    CERTIFICATES,
    REGISTER,
    REQUEST_EVENTS,
    REQUEST_PINS,
    REQUEST_BATCHES,
    ERASURES,
    ARTIFACTS,
    EDGES,
    LINEAGE_MEMBERS,
    LINEAGE_SETS,
)
