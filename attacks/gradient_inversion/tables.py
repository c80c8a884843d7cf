"""The tables and pictures of the audit ``dropout_inversion``."""

from __future__ import annotations

from contracts.methods import EXAMPLE_ID, Picture
from contracts.tables import Column, TableSpec

ATTACKS = ("ig", "dia", "wiig", "dlg", "analytic")
DRAWN = ("ig", "dia", "wiig")
NAMES = {"wiig": "wiig (control)"}


def _real(
    name: str, doc: str, *, low: float | None = None, high: float | None = None, unit: str = "", direction: str = ""
) -> Column:
    return Column(
        name=name, dtype="float64", doc=doc, low=low, high=high, unit=unit, nullable=True, direction=direction
    )


_SETTING = (
    Column(
        name="attack",
        dtype="str",
        choices=ATTACKS,
        doc="ig: no masks; dia: masks found too; wiig: the client's own masks, a control no server can run; dlg; "
        "analytic",
    ),
    Column(
        name="dropout_p",
        dtype="float64",
        low=0,
        high=1,
        doc="dropout rate of the client (the largest of the model's own)",
    ),
    Column(
        name="batchnorm",
        dtype="str",
        choices=("none", "running", "batch"),
        doc="BatchNorm of client and server: the model has none, by running statistics, or by the batch's own",
    ),
)

ROWS = TableSpec(
    schema="audits",
    name="dropout_inversion",
    key=("example_id", "attack", "dropout_p", "batchnorm"),
    doc="What a curious server rebuilds of single training examples from the gradients that a client shares.",
    columns=(
        EXAMPLE_ID,
        *_SETTING,
        Column(name="setting", dtype="str", doc="attack, dropout and BatchNorm in one word, for pictures"),
        Column(name="label", dtype="int64", low=0, doc="class index"),
        Column(
            name="label_correct",
            dtype="bool",
            doc="the label was read off the shared gradient (dlg: found by its search)",
        ),
        _real(
            "psnr",
            "closeness of the reconstruction; null when there is none",
            unit="dB",
            high=150,
            direction="higher = more is seen",
        ),
        _real(
            "ssim",
            "structural similarity; null for what is no image",
            low=-1,
            high=1,
            direction="higher = more is seen",
        ),
        _real(
            "mse", "mean squared difference in the scale of the model's inputs", low=0, direction="lower = more is seen"
        ),
        _real(
            "grad_loss",
            "cosine distance of the reconstruction's gradient to the shared one; null for analytic",
            low=0,
            high=2,
        ),
        _real(
            "mask_accuracy",
            "share of the client's mask entries that dia found, where the unit was not 0; null otherwise",
            low=0,
            high=1,
        ),
        Column(name="iterations", dtype="int64", low=0, doc="steps until the attack's end; 0 for analytic"),
        _real("grad_norm", "norm of what the client shared; tiny for examples the model is sure of", low=0),
        Column(name="client", dtype="int64", low=0, doc="examples of one client were shared as one gradient"),
        Column(name="seed", dtype="int64", doc="seed of the attack's start"),
    ),
)

SUMMARY = TableSpec(
    schema="audits",
    name="dropout_inversion_summary",
    key=("attack", "dropout_p", "batchnorm"),
    doc="The inversions of one attack and dropout rate together, with exact intervals (level 95%).",
    columns=(
        *_SETTING,
        Column(
            name="dropout",
            dtype="str",
            choices=("own", "inserted", "none"),
            doc="the model's own dropout, or inserted after its hidden layers because it has none",
        ),
        Column(name="n", dtype="int64", low=0, doc="examples; 0 when the attack does not apply"),
        _real("median_psnr", "median over examples", unit="dB", direction="higher = more is seen"),
        _real(
            "psnr_low", "lower end of the median's exact interval (order statistics); null below 6 examples", unit="dB"
        ),
        _real("psnr_high", "upper end", unit="dB"),
        _real("over_ig", "median over examples of PSNR minus that of ig on the same gradient", unit="dB"),
        _real("over_ig_low", "lower end of its exact interval; null below 6 examples", unit="dB"),
        _real("over_ig_high", "upper end", unit="dB"),
        _real("median_ssim", "median over examples", low=-1, high=1),
        _real("median_grad_loss", "median over examples", low=0, high=2),
        _real("median_mask_accuracy", "median over examples; dia only", low=0, high=1),
        _real("labels_right", "share of labels read off the gradients", low=0, high=1),
        _real("labels_low", "lower end, Clopper-Pearson", low=0, high=1),
        _real("labels_high", "upper end, Clopper-Pearson", low=0, high=1),
        _real("mean_iterations", "mean over examples", low=0),
        Column(name="note", dtype="str", doc="why the attack does not apply, or what limits it; empty otherwise"),
    ),
)

IMAGES = TableSpec(
    schema="audits",
    name="inversion_images",
    key=("example_id", "attack", "dropout_p", "batchnorm"),
    doc="The originals and what ig, dia and the control made of them.",
    columns=(
        EXAMPLE_ID,
        Column(name="attack", dtype="str", choices=("original", *DRAWN), doc="attack, or the example itself"),
        *_SETTING[1:],
        Column(name="panel", dtype="str", doc="heading of the picture"),
        _real("psnr", "closeness to the original; null for the original", unit="dB", high=150),
        Column(name="image", dtype="floats", doc="values in the scale of the model's inputs, in C order"),
    ),
)

PICTURES = (
    Picture(
        table="inversion_images",
        kind="images",
        x="example_id",
        y="image",
        series="panel",
        value="psnr",
        title="What a curious server rebuilds (dB)",
    ),
    Picture(
        table="dropout_inversion",
        kind="dots",
        x="setting",
        y="psnr",
        title="PSNR of single examples, by attack and dropout",
    ),
    Picture(
        table="dropout_inversion_summary",
        kind="bars",
        x="attack",
        series="dropout_p",
        y="median_psnr",
        low="psnr_low",
        high="psnr_high",
        title="Median PSNR (dB) and its exact interval",
    ),
)


def setting(attack: str, dropout_p: float, batchnorm: str) -> str:
    """
    >>> setting("wiig", 0.5, "none"), setting("ig", 0.0, "batch")
    ('wiig (control) p = 0.5', 'ig p = 0, batch statistics')
    """
    extra = "" if batchnorm == "none" else f", {batchnorm} statistics"
    return f"{NAMES.get(attack, attack)} p = {dropout_p:g}{extra}"
