"""Reference models that somebody else trained: their checkpoints, and a table that says which rows each of them saw.

    seen[m, j] = 1 if the table has a row (model m, example j)
    pool        examples that at least k models saw and at least k did not          k: ``each_side``
    population  test examples that none saw;   left out: everything else

A design of one's own need not be balanced: what reads reference models counts on which side of each example they are.
What it cannot do without is both sides, so an example with fewer than k on either is left out, and is counted. A set
that cannot serve at all is refused before any model is read: ids that the data has not, a model without a file or a
file without a model, a model that saw all of them (it is on one side only).

That these models were made as the audited one was is what whoever brings them says; ``assets.audits`` tests it on one
of them (``recipe_match``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from torch import nn

from contracts.digests import digest
from contracts.errors import ConfigError, DataError, InvalidInput
from contracts.progress import Progress, silent
from contracts.subject import Ensemble, Policy
from recipes.checkpoints import arrays_digest, load_arrays, read_checkpoint
from recipes.ensemble import Gathered, ReferenceEnsemble, labels_of, refuse_no_outputs, said
from recipes.inputs import Inputs, model_dtype
from recipes.models import Build
from sources.example_set import ExampleSet
from sources.files import MAX_BYTES
from sources.table_files import read_table

_FEWEST = 20  # examples in the pool, as of a pool that is drawn here


@dataclass(frozen=True, eq=False)
class GivenSet:
    """Reference models that were brought, checked against the data.

    Attributes:
        files: model -> its safetensors, in the order of the names.
        sha256: name of a file -> its SHA-256, the table of members among them.
        seen: (M, N) bool over all examples of the data.
        pool, population: positions in the data, ascending.
    """

    files: dict[str, Path]
    sha256: dict[str, str]
    seen: np.ndarray
    pool: np.ndarray
    population: np.ndarray

    @property
    def num_known(self) -> int:
        """Examples that any of the models saw."""
        return int(self.seen.any(axis=0).sum())

    def sides(self) -> np.ndarray:
        """(len(pool),) models on the smaller side of each example of the pool."""
        inside = self.seen[:, self.pool].sum(axis=0)
        return np.minimum(inside, len(self.seen) - inside)


def files_of(policy: Policy) -> dict[str, Path]:
    """Model -> its safetensors, in the order of the names.

    Raises:
        ConfigError: no such folder, or none in it.
    """
    folder = Path(policy.folder)
    found = {path.stem: path for path in folder.glob("*.safetensors") if path.is_file()}
    if not found:
        raise ConfigError(
            f"ensemble.policy.folder {policy.folder!r} is no folder with reference models; one MODEL.safetensors for "
            "each model of the table of members is needed"
        )
    return dict(sorted(found.items()))


def fingerprints(policy: Policy) -> dict[str, str]:
    """SHA-256 of every model's file and of the table of members, by the names of the files.

    Raises:
        ConfigError: see :func:`files_of`; or there is no such table.
    """
    members = Path(policy.members)
    if not members.is_file():
        raise ConfigError(
            f"ensemble.policy.members {policy.members!r} is no file; a CSV, Parquet or JSON lines table with columns "
            "model and example_id is needed"
        )
    found = {}
    for path in (*files_of(policy).values(), members):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def given_set(data: ExampleSet, *, ensemble: Ensemble) -> GivenSet:
    """The models that a plan names, and what each of them saw of ``data``. No weights are read.

    Raises:
        ConfigError: no such files; another number of models than the plan says; a model without a file, or a file
            without a row; a model that saw everything; too few examples with models on both sides, or none without.
        DataError: no table, or no such columns in it; ids that the data has not, or rows that are there twice.
    """
    policy = ensemble.policy
    hashes, files = fingerprints(policy), files_of(policy)
    model, ids = _table(Path(policy.members))
    names, code = np.unique(model, return_inverse=True)
    where = f"ensemble.policy.members {policy.members!r}"
    if missing := sorted(set(names.tolist()) - set(files)):
        raise ConfigError(f"{where} names models that {policy.folder!r} has no .safetensors of: {_some(missing)}")
    if unseen := sorted(set(files) - set(names.tolist())):
        raise ConfigError(f"{where} has no row for models of {policy.folder!r}: {_some(unseen)}; each saw 1 at least")
    if len(files) != ensemble.num_models:
        raise ConfigError(
            f"ensemble.num_models = {ensemble.num_models}, and {policy.folder!r} holds {len(files)} given models: "
            f"state {len(files)}"
        )
    try:
        rows = data.positions(ids)
    except DataError as error:
        raise DataError(f"{where} names rows that the data has not: {error}") from None
    seen = np.zeros((len(names), len(data)), bool)
    seen[code, rows] = True  # names ascend, as the files do
    if int(seen.sum()) != len(ids):
        pairs = pl.DataFrame({"model": model, "example_id": ids})
        raise DataError(
            f"{where} has rows twice", example_ids=pairs.filter(pairs.is_duplicated())["example_id"].unique()
        )
    known = seen.any(axis=0)
    if (all_of_it := seen[:, known].all(axis=1)).any():
        raise ConfigError(
            f"{where}: {_some([str(n) for n in names[all_of_it]])} saw all {int(known.sum()):,} examples of the table: "
            f"a reference model saw 1 to {int(known.sum()) - 1:,} of them, for it is compared on those it did not see"
        )
    inside = seen.sum(axis=0)
    pool = np.flatnonzero(np.minimum(inside, len(seen) - inside) >= policy.each_side)
    if len(pool) < _FEWEST:
        raise ConfigError(
            f"{where}: {len(pool)} examples were seen by {policy.each_side} models (ensemble.policy.each_side) and not "
            f"seen by as many; {_FEWEST} are needed"
        )
    population = np.flatnonzero((data.split == "test") & (inside == 0))
    if not len(population):
        raise ConfigError(
            f"{where}: every test example was seen by a given model; one that none saw is needed for a population"
        )
    return GivenSet(files, hashes, seen, pool, population)


def refuse_other_models(given: GivenSet, build: Build) -> None:
    """Nothing, when every file fits the architecture. Every file is read, one at a time.

    Raises:
        ConfigError: names the first file that does not fit, and what does not.
        DataError: no safetensors.
    """
    for name in given.files:
        _loaded(given, name, build)


def given_ensemble(
    build: Build,
    data: ExampleSet,
    *,
    ensemble: Ensemble,
    device: str = "cpu",
    outputs: bool = False,
    progress: Progress = silent,
) -> ReferenceEnsemble:
    """What given models say of pool and population; one of them is in memory at a time.

    Args:
        build: seed -> fresh model, the architecture under audit.
        data: the whole data set, both splits.
        ensemble: the number of models, and the policy with their files.
        device: "cpu" or "cuda".
        outputs: keep the whole outputs too, of a task that gives them.
        progress: called with (models read, in all, "reference models").

    Raises:
        ConfigError, DataError: see :func:`given_set` and :func:`refuse_other_models`; readings that are not finite.
        NotApplicable: outputs that the task does not give.
    """
    refuse_no_outputs(data, outputs)
    given = given_set(data, ensemble=ensemble)
    rows = np.sort(np.concatenate([given.pool, given.population]))
    view, in_pool = data.take(rows), np.isin(rows, given.pool)
    gathered = Gathered(len(given.files))
    for m, name in enumerate(given.files):
        model = _loaded(given, name, build).to(device).eval()
        inputs = Inputs(view, dtype=model_dtype(model), device=device)
        gathered.add(said([model], inputs, ~in_pool, first=m, of=len(given.files), outputs=outputs), start=m)
        progress(m + 1, len(given.files), "reference models")
    made_of = {
        "policy": "given",
        "files": given.sha256,
        "each_side": ensemble.policy.each_side,
        "data": data.digest,
        "rows": arrays_digest({"example_id": view.example_id}),
    }
    return ReferenceEnsemble(
        example_id=view.example_id,
        pool=in_pool,
        labels=labels_of(view),
        keep=given.seen[:, rows],
        config_digest=digest(made_of),
        each_side=ensemble.policy.each_side,
        **gathered.arrays,
    )


def _loaded(given: GivenSet, name: str, build: Build) -> nn.Module:
    model: nn.Module = build(0)
    try:
        load_arrays(model, read_checkpoint(given.files[name]))
    except DataError:
        raise
    except InvalidInput as error:
        raise ConfigError(f"reference model {given.files[name].name} is not of the plan's model: {error}") from error
    return model


def _table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(models, example ids) of the rows of a table of members."""
    table = read_table(path.parent.resolve(), path.name, max_bytes=MAX_BYTES)
    model, ids = table.column("model").cast(pl.String), table.column("example_id")
    try:
        ids = ids.cast(pl.Int64)
    except pl.exceptions.PolarsError:
        raise DataError(f"{path.name}: column 'example_id' is {ids.dtype}, not whole numbers") from None
    if empty := model.null_count() + ids.null_count():
        raise DataError(f"{path.name}: {empty} cells of model and example_id are empty; both are needed in every row")
    return model.to_numpy().astype(str), ids.to_numpy()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... {len(names)} in all" if len(names) > 5 else "")
