"""What ``palimpsest init`` does about a table of a model's outputs, without the model: what applies follows from what
is needed."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked
from contracts.subject import OUTPUTS, Subject
from tasks.base import gives

MAX_AUC = 0.60  # whether the model tells its members is the one question there is, so the plan judges it


def asked_for_outputs(path: Path, outputs: bool | None, *, model: str, checkpoint: str | None) -> bool:
    """Whether a file is read as a model's outputs: as the option says, else by the names of its columns.

    Raises:
        ConfigError: it is asked for, and so is a model.
    """
    from sources.outputs import looks_like_outputs

    if outputs and (model != "mlp" or checkpoint is not None):
        named = f"--model {model}" if model != "mlp" else f"--checkpoint {checkpoint}"
        raise ConfigError(f"--outputs says that there is no model, and {named} names one: leave one of them out")
    if outputs is not None or model != "mlp" or checkpoint is not None or not path.is_file():
        return bool(outputs)
    try:
        return looks_like_outputs(path)
    except (DataError, OSError):
        return False


def plan_for_outputs(name: str, path: Path, asked: Asked) -> tuple[Subject, list[str]]:
    """A checked plan for a table of outputs, and what to say of it: what it is, then a sentence each.

    Every registered score, analysis and attack that needs no model is in it.

    Raises:
        ConfigError: the columns cannot be told.
        DataError: the outputs, labels or splits cannot be used.
    """
    from assets.needs import lacks
    from contracts.methods import analysis, attack, score
    from sources.outputs import FEATURES, outputs_config, outputs_of
    from sources.plan import load_examples
    from stats import detectable_auc

    config, left_out = outputs_config(path, asked)
    base = {
        "subject": name,
        "title": f"{name}: outputs in {path.name}",
        "source": {"name": OUTPUTS, "config": config},
        "model": OUTPUTS,
    }
    data = load_examples(Subject.from_mapping(base))
    _, zeros = outputs_of(config)
    applies: dict[str, list[str]] = {}
    without: dict[bool, list[str]] = {True: [], False: []}  # for want of features, or of a model
    for kind, registry in (("score", score), ("analysis", analysis), ("attack", attack)):
        every = [m.spec for m in registry if gives(data, *m.spec.wants)]
        applies[kind] = [spec.name for spec in every if not lacks(spec, kind, data) and not _reads_others(spec)]
        for spec in every:
            if why := lacks(spec, kind, data):
                without["features" in why].append(spec.name)
    plan = Subject.from_mapping(
        {
            **base,
            "ensemble": {"population_fraction": 0.2},
            "scores": applies["score"],
            "analyses": applies["analysis"],
            "attacks": applies["attack"],
            "thresholds": {"max_target_auc": MAX_AUC},
        }
    )
    members = int((data.split == "train").sum())
    columns = config["outputs"]
    said = f"{columns[0]} to {columns[-1]}" if len(columns) > 1 else columns[0]
    lines = [
        f"a model's outputs in {path.name}: {members:,} members and {len(data) - members:,} others by "
        f"{config['split']!r}, {data.num_classes} classes, outputs {said}, label {config['label']!r}"
        + (f", {data.input_shape[0]} features" if data.provenance["values"] == FEATURES else ", no features")
    ]
    if zeros:
        lines.append(
            f"a probability is exactly 0 in {zeros:,} rows: rounding took what tells members; logits would keep it"
        )
    if left_out:
        lines.append(f"not read: {', '.join(left_out)}")
    for want, what in ((True, "features"), (False, "the model")):
        lines += [f"left out, they need {what}: {', '.join(without[want])}"] if without[want] else []
    lines += data.provenance["notes"]
    found_from = detectable_auc(members, len(data) - members, alpha=plan.thresholds.alpha)
    lines.append(
        f"these attacks find a model that tells its members with an AUC of {min(found_from, 1.0):.2f} or more, and "
        "clear none: for that give the model (--checkpoint)"
    )
    return plan, lines


def _reads_others(spec: object) -> bool:
    """It reads scores, splits, tables or an import that the plan, or a person, has to bring."""
    return bool({"scores", "splits", "tables", "select_where", "imported"} & set(getattr(spec, "needs", ())))
