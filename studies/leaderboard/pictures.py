"""How the tables of the leaderboard are drawn."""

from __future__ import annotations

from contracts.methods import Picture

PICTURES = (
    *(
        Picture(
            table="leaderboard",
            title=f"Gap to retraining, {title} (lower is better; none: nothing removed)",
            kind="dots",
            x="method",
            y="avg_gap",
            low="avg_gap_low",
            high="avg_gap_high",
            where=(("forget_set", kind),),
        )
        for kind, title in (("random", "random set"), ("class", "one class"), ("worst_case", "worst-case set"))
    ),
    *(
        Picture(
            table="leaderboard",
            title=f"Gap to retraining against time, {title}",
            kind="scatter",
            x="wall_s",
            y="avg_gap",
            series="method",
            low="avg_gap_low",
            high="avg_gap_high",
            log_x=True,
            where=(("forget_set", kind),),
        )
        for kind, title in (("worst_case", "worst-case set (lower left is better)"), ("random", "random set"))
    ),
    Picture(
        table="leaderboard_klom",
        title="KLoM above its noise floor, forgotten examples of the random set (0 is exact)",
        kind="bars",
        x="method",
        y="normal_excess",
        where=(("forget_set", "random"), ("part", "forget")),
    ),
    Picture(
        table="leaderboard_layers",
        title="Similarity to retraining, layer by layer, random set (linear CKA)",
        x="place",
        y="cka",
        series="method",
        where=(("forget_set", "random"),),
    ),
    Picture(
        table="leaderboard_examples",
        title="Embedding of forgotten examples, random set (rotated onto none)",
        kind="scatter",
        x="x",
        y="y",
        series="method",
        where=(("forget_set", "random"), ("part", "forget")),
    ),
)
