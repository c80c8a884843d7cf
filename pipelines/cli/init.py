"""``palimpsest init``: a new subject from a file or folder of the user's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from contracts.errors import ConfigError, DataError
from contracts.identity import check_name
from contracts.methods import Asked, analysis, attack, recipe, score, unlearner
from contracts.registry import Registry
from contracts.subject import Model, Subject
from pipelines.cli.imports import store
from pipelines.cli.own_model import Checkpoint, best_way, model_of
from pipelines.cli.own_outputs import asked_for_outputs, plan_for_outputs
from pipelines.cli.terminal import console, state_to_write

if TYPE_CHECKING:
    from sources.example_set import ExampleSet
    from tasks.base import Task


_LEAST = 5  # training examples


def init(
    name: Annotated[str, typer.Argument(help="name of the new subject: a-z, 0-9, _ and -")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="CSV, Parquet or JSON lines (also user-item logs, texts, Hugging Face's pictures, folders of shards), "
            "NPZ, IDX pair; a folder of images, of images/ and masks/, of .txt files, or nodes.csv and edges.csv",
        ),
    ],
    label: Annotated[
        str | None, typer.Option("--label", help="label column; of an image folder: the level of folders, 1 by default")
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            "--owner",
            help="column that says whose data a row is; of an image folder: a level of folders, or a table of file and "
            "owner",
        ),
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="column of whole, unique ids")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="column of train, test and val; a test split is drawn without one")
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            "--val", help="validation rows: drop, train or test; left out by default where there are test rows"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="classification or regression; read off the labels by default")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="column that is not used; may be repeated")] = None,
    user: Annotated[str | None, typer.Option("--user", help="user column of a log of interactions")] = None,
    item: Annotated[str | None, typer.Option("--item", help="item column of a log of interactions")] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="time column of a log: the last of each user are tested")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="mlp, cnn, resnet_gn, vit, or your module:callable in the working folder; texts, masks, graphs, logs "
            "have one of their own by default",
        ),
    ] = "mlp",
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="weights to audit as they are: .safetensors, .pt, or imported/NAME"),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", help="how a checkpoint wants its inputs: standardised, raw, or unit (images, 0 to 1)"),
    ] = None,
    outputs: Annotated[
        bool | None,
        typer.Option(
            "--outputs/--no-outputs", help="the file holds what a model said, and there is no model", show_default=False
        ),
    ] = None,
) -> None:
    """Make a subject from your own data: the kind is detected, the data checked, the plan written and explained."""
    from assets.duration import in_words, minutes
    from assets.expected import expectations
    from pipelines.subjects import write_subject

    home = state_to_write()
    check_name(name, kind="subject")
    if not data.exists():
        raise ConfigError(f"--data {data} does not exist")
    for option, value, allowed in (
        ("--task", task, ("classification", "regression")),
        ("--val", val, ("drop", "train", "test")),
    ):
        if value is not None and value not in allowed:
            raise ConfigError(f"{option} {value!r} is not one of {', '.join(allowed)}")
    asked = Asked(label=label, owner=owner, id=id, split=split, task=task, val=val, drop=tuple(drop or ()))
    if asked_for_outputs(data, outputs, model=model, checkpoint=checkpoint):
        _init_outputs(name, data, home, asked)
        return
    given = None if checkpoint is None else Checkpoint.named(checkpoint, subject=name, home=home)
    if inputs is not None and given is None:
        raise ConfigError("--inputs says how a checkpoint wants its inputs, and there is no --checkpoint")
    found = plan_for(
        name,
        data.resolve(),
        asked,
        model=model,
        user=user,
        item=item,
        time=time,
        checkpoint=given,
        inputs=inputs,
    )
    plan = found.plan
    said = expectations(plan, found.examples) or ["Nothing is judged: scores and analyses alone."]
    forecast = in_words(minutes(plan, found.examples))
    path = write_subject(
        plan, home, comment=f"Made by 'palimpsest init {name} --data {data.name}'. Every field may be edited."
    )
    if given is not None and given.to_import:
        store(given.arrays, name, file=given.file, home=home)
    console.print(f"[bold]{name}[/]: {escape(found.facts)}", highlight=False)
    _listed("How it is read:", found.notes)
    _listed("What an audit can say:", [*said, f"It takes {forecast} on this machine."])
    console.print(f"Plan: {path}", soft_wrap=True)
    references = f"{plan.ensemble.num_models} reference models; " if plan.attacks else ""
    trained = "as given" if given else f"trained by {plan.recipe.name}"
    console.print(
        f"  model {plan.model.name}, {trained}; {references}"
        f"scores {', '.join(c.name for c in plan.scores) or 'none'}; "
        f"analyses {', '.join(c.name for c in plan.analyses) or 'none'}; "
        f"attacks {', '.join(c.name for c in plan.attacks) or 'none'}; every Monday at 06:00 UTC under 'make ui'",
        highlight=False,
    )
    if given is not None:
        console.print(
            f"  Reference models and retrainings are made by the plan's recipe ({plan.recipe.name}): make it the one "
            f"that trained {given.file.name}; the audit tests whether it could be.",
            highlight=False,
        )
    console.print(f"Next: [bold]palimpsest audit {name}[/]")


def _init_outputs(name: str, data: Path, home: Path, asked: Asked) -> None:
    """The plan of a table of outputs, written and explained."""
    from pipelines.subjects import write_subject

    plan, lines = plan_for_outputs(name, data.resolve(), asked)
    path = write_subject(plan, home, comment=f"Made by 'palimpsest init {name} --data {data.name} --outputs'.")
    console.print(f"[bold]{name}[/]: {escape(lines[0])}", highlight=False)
    _listed("How it is read:", lines[1:])
    console.print(f"Plan: {path}", soft_wrap=True)
    for kind, chosen in (("scores", plan.scores), ("analyses", plan.analyses), ("attacks", plan.attacks)):
        console.print(f"  {kind} {', '.join(c.name for c in chosen) or 'none'}", highlight=False)
    console.print(f"Next: [bold]palimpsest audit {name}[/]")


def _listed(heading: str, sentences: Sequence[str], *, most: int = 30) -> None:
    """The sentences as a list under its heading, the first ``most`` of them; nothing for none."""
    if not sentences:
        return
    rows = Table.grid(padding=(0, 1))
    for sentence in sentences[:most]:
        rows.add_row(" -", Text(sentence))
    if len(sentences) > most:
        rows.add_row(" -", Text(f"and {len(sentences) - most:,} more; all columns left out are listed in the plan"))
    console.print(heading)
    console.print(rows)


class Planned(NamedTuple):
    """A checked plan, the examples it was sized by, one line of facts about them, and what was left out or read
    otherwise."""

    plan: Subject
    examples: ExampleSet
    facts: str
    notes: tuple[str, ...]


def plan_for(
    name: str,
    data: Path,
    asked: Asked,
    *,
    model: str,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    checkpoint: Checkpoint | None = None,
    inputs: str | None = None,
) -> Planned:
    """A checked plan for a data set, sized by it.

    Every training step count is bounded, by about what a network needs to fit its training data to the last example
    (memorization asks for that): 20,000 steps for an MLP, 6,000 for others, batches of 64 (128 above 20,000 examples).
    Recommenders: see :func:`_ranking`.

    Args:
        asked: which columns are what, as far as a person said so.
        user, item, time: columns of a log of interactions; ``user`` and ``item`` together make it one.
        checkpoint: weights of ``model`` that are audited as they are.
        inputs: how it wants its inputs; None: as it does best.

    Raises:
        ConfigError: no source recognises the data, or a column is not known.
        DataError: the data cannot be audited as it is.
    """
    from contracts.methods import source as sources
    from recipes.plan import load_examples, tried_model
    from sources.files import ImageConfig
    from sources.interactions import from_columns, refuse_asked
    from sources.loading import detect

    if user is None and item is None and time is None:
        source, config, notes = detect(data, asked)
    elif user is None or item is None or asked.label is not None or asked.owner is not None:
        raise ConfigError(
            "--user and --item (and --time where there is one) say together that the data are interactions; the item "
            "is what is predicted and the user owns the row, so --label and --owner have no place beside them"
        )
    else:
        refuse_asked(asked)
        source = "interactions"
        config, notes = from_columns(data, user=user, item=item, time=time, id=asked.id, drop=asked.drop)
    images = issubclass(sources.get(source).spec.config, ImageConfig)
    if images and checkpoint is None:
        config = {**config, "standardise": True}
    base = {"subject": name, "title": f"{name}: {data.name}", "source": {"name": source, "config": config}}
    probe = Subject.from_mapping({**base, "model": model_of(model), "recipe": "supervised"})
    said = ""
    if checkpoint is not None:
        probe, examples, said = best_way(probe, checkpoint, inputs, images=images)
        base["source"] = probe.source
    else:
        examples = load_examples(probe)
        if model == "mlp" and (kind := _kind_of(examples.task)) is not None:
            model = kind.model
            probe = dataclasses.replace(probe, model=model_of(model))
        tried_model(probe, examples)  # refuses what the audit would, before anything is written
    train = int((examples.split == "train").sum())
    if train < _LEAST:
        raise DataError(
            f"{data.name} has {train} training examples; {_LEAST} are needed for a forget set of one, a fifth of them"
        )
    batch = 64 if train <= 20_000 else 128
    epochs = int(min(100, max(10, (20_000 if model == "mlp" else 6_000) * batch // train)))
    plan: dict[str, Any] = {
        **base,
        "model": probe.model,
        "recipe": {
            "name": "supervised",
            "config": {
                "optimizer": "sgd",
                "lr": 0.05,
                "momentum": 0.9,
                "batch": batch,
                "epochs": epochs,
                "schedule": "cosine",
            },
        },
        "early": {"seeds": 10 if train <= 20_000 else 5, "epoch": max(1, min(3, epochs // 10))},
        "ensemble": {"num_models": 64, "block": 16} if train <= 5_000 else {"num_models": 20, "block": 10},
        "scores": ["el2n", "grand", "memorization", "knn_disagreement", "near_duplicates", "concept_attribution"],
        "analyses": ["influence", "long_tail_report", "train_test_duplicates", "concepts", "exposure"],
        "splits": [
            {"name": "random", "method": "random_fraction", "config": {"fraction": 0.1 if train > 2_000 else 0.2}}
        ],
        "unlearning": {
            "split": "random",
            "methods": [{"name": "finetune", "config": {"epochs": max(1, epochs // 8), "lr": 0.02}}],
            "seeds": 3 if train <= 20_000 else 1,
        },
        "attacks": ["loss", "lira_online", "rmia_online"],
    }
    if (kind := _kind_of(examples.task)) is not None:
        plan |= kind.fields(train, probe.model)
    plan = _applicable(plan, examples.task)
    owners, unowned = len(set(examples.owner.tolist()) - {""}), int((examples.owner == "").sum())
    facts = (
        f"{source}, {train:,} training and {examples.num_examples - train:,} test examples, "
        f"{examples.task.describe(examples)}, shape {' x '.join(map(str, examples.input_shape))}"
        + (f", {owners:,} owners" if owners else "")
    )
    if "rating" in config:
        facts += (
            f"; every row counts, whatever its {config['rating']!r}: min_rating in the plan's source keeps the higher "
            "ones"
        )
    nobody = f"{unowned:,} examples have no owner: no request by owner reaches them" if owners and unowned else ""
    notes = (*notes, *examples.provenance.get("notes", ()), *filter(None, [nobody, said]))
    return Planned(Subject.from_mapping(plan), examples, facts, notes)


class Kind(NamedTuple):
    """What a plan of examples that are no vectors and no pictures with one label each is made of.

    Attributes:
        model: that a person gets who names none.
        fields: (training examples, model) -> fields of the plan.
    """

    model: str
    fields: Callable[[int, Model], dict[str, Any]]


def _kind_of(task: Task) -> Kind | None:
    """By what the task gives; None for vectors and pictures with one target each.

    Raises:
        ConfigError: no recipe trains on such examples.
    """
    kinds = {
        "interactions": Kind("mf", _ranking),
        "tokens": Kind("tiny_llama", _texts),
        "nodes": Kind("gat", _nodes),
        "pixels": Kind("unet", _masks),  # before what follows: they are pictures too
    }
    found = next((kind for view, kind in kinds.items() if task.gives(view)), None)
    if found is None and not task.gives("features"):
        raise ConfigError(f"the data are read ({task}), but no recipe here trains on them yet; a package may bring one")
    return found


def _masks(train: int, model: Model) -> dict[str, Any]:
    """Fields of a segmentation network's plan: some 1,500 steps of six pictures, at most 60 passes."""
    epochs = int(min(60, max(5, 1_500 * 6 // max(train, 1))))
    return {
        "model": dataclasses.replace(model, config={"channels": [8, 16, 32]} if model.name == "unet" else {}),
        "recipe": {
            "name": "segmentation",
            "config": {"loss": "ce_dice", "lr": 0.02, "momentum": 0.9, "batch": 6, "epochs": epochs},
        },
        "early": {"seeds": 2, "epoch": max(1, min(3, epochs // 10))},
        "ensemble": {"num_models": 40, "block": 10},
        "scores": ["grand", "memorization", "near_duplicates"],
        "analyses": ["influence", "train_test_duplicates", "region_errors", "exposure"],
        "unlearning": {
            "split": "random",
            "methods": [{"name": "finetune", "config": {"epochs": max(1, epochs // 8), "lr": 0.01}}],
            "seeds": 2,
        },
    }


def _texts(train: int, model: Model) -> dict[str, Any]:
    """Fields of a small language model's plan: some 30 passes, fewer of many texts, and eight reference models."""
    epochs = int(min(30, max(3, 60_000 // max(train, 1))))
    small = {"hidden": 64, "intermediate": 128, "layers": 2, "heads": 2} if model.name == "tiny_llama" else {}
    config = {"lr": 0.005, "batch": 32, "epochs": epochs, "warmup_epochs": 1}
    return {
        "model": dataclasses.replace(model, config=small),
        "recipe": {"name": "causal_lm", "config": config},
        "ensemble": {"num_models": 20, "block": 4} if train <= 1_000 else {"num_models": 8, "block": 4},
        "scores": ["memorization"],
        "analyses": ["influence", "exposure"],
        "unlearning": {"split": "random", "methods": ["retrain"], "seeds": 1},
    }


def _nodes(train: int, model: Model) -> dict[str, Any]:
    """Fields of a graph network's plan: a hundred passes over the whole graph, and fewer reference models of many
    nodes."""
    small = {"gat": {"hidden": 64, "heads": 4, "dim": 64}, "gcn": {"hidden": 64, "dim": 64}}
    return {
        "model": dataclasses.replace(model, config=small.get(model.name, {})),
        "recipe": {"name": "node_classifier", "config": {"lr": 0.01, "epochs": 100}},
        "early": {"seeds": 5, "epoch": 15},
        "ensemble": {"num_models": 40, "block": 8} if train <= 10_000 else {"num_models": 20, "block": 4},
        "scores": ["el2n", "grand", "memorization", "erase_labels"],
        "analyses": ["influence", "exposure"],
        "unlearning": {
            "split": "random",
            "methods": [{"name": "finetune", "config": {"epochs": 5, "lr": 0.01, "batch": 2048}}],
            "seeds": 2,
        },
    }


def _applicable(plan: dict[str, Any], task: Task) -> dict[str, Any]:
    """The plan without the methods that want more of the task than it gives, or early models of a recipe that has
    none."""
    early = recipe.get(plan["recipe"]["name"]).spec.early

    def applies(kind: Registry[Any], choice: str | dict[str, Any]) -> bool:
        spec = kind.get(choice if isinstance(choice, str) else choice["name"]).spec
        return task.gives(*spec.wants) and (early or "early_models" not in spec.needs)

    kinds: dict[str, Registry[Any]] = {"scores": score, "analyses": analysis, "attacks": attack}
    found = {name: [choice for choice in plan[name] if applies(kind, choice)] for name, kind in kinds.items()}
    methods = [choice for choice in plan["unlearning"]["methods"] if applies(unlearner, choice)]
    return {**plan, **found, "unlearning": {**plan["unlearning"], "methods": methods}}


def _ranking(train: int, model: Model) -> dict[str, Any]:
    """Fields of a recommender's plan: some 20 steps an epoch, batches of 64 to 2,048 users, 60 epochs, and fewer where
    that came to more than 50,000 steps. An epoch of fewer steps than that hardly moves the vectors, whatever the rate.
    """
    batch = 2 ** int(min(11, max(6, math.log2(max(train, 1) / 20))))
    epochs = int(min(60, max(10, 50_000 * batch // train)))
    training = {"lr": 0.01, "batch": batch, "epochs": epochs, "reg": 0.001}
    vectors = {"dim": 32} if model.name in ("mf", "lightgcn") else {}
    compared = {"backbone": model.name, **vectors, "count_from": epochs // 4, "seeds": 3 if train <= 200_000 else 1}
    return {
        "model": dataclasses.replace(model, config=vectors),
        "recipe": {"name": "bpr", "config": {"denoise": "pld", **training}},
        "ensemble": {"num_models": 20, "block": 10},
        "scores": ["memorization", "personal_loss"],
        "splits": [
            {"name": "random", "method": "random_fraction", "config": {"fraction": 0.1}},
            {"name": "denoised", "method": "denoise_implicit", "config": {"score": "personal_loss"}},
        ],
        "analyses": [
            "influence",
            "exposure",
            *([{"name": "recsys_eval", "config": compared | training}] if vectors else []),
        ],
        "unlearning": {"split": "random", "methods": ["retrain"], "seeds": 1},
    }
