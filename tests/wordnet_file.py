"""A small file in the format of WordNet's data.noun: a tree of three classes, some parts, and a pointer to a verb."""

from __future__ import annotations

from pathlib import Path

WORDS = ("animal", "stone", "river", "light", "motion", "water", "tree", "large", "small", "house", "tail", "green")
NUM = 100


def _line(number: int) -> str:
    """Synset ``number`` has offset 100 (number + 1); its hypernym is number // 3."""
    offset, parent = 100 * (number + 1), 100 * (number // 3 + 1)
    lexfile = 3 if number < 7 else 4 + number % 2
    pointers = [f"@ {parent:08d} n 0000"] if number else []
    pointers += [f"~ {100 * (c + 1):08d} n 0000" for c in range(3 * number, 3 * number + 3) if 0 < c < NUM]
    pointers += [f"%p {100 * (number - 4):08d} n 0000"] if number % 10 == 9 else []
    pointers += ["+ 00000055 v 0101"] if number % 8 == 0 else []
    words = " ".join(f"{w} 0" for w in (["entity"] if not number else [f"word_{number}", f"other_{number}"]))
    gloss = " ".join(WORDS[(number * k + lexfile) % len(WORDS)] for k in range(1, 6))
    return (
        f"{offset:08d} {lexfile:02d} n {1 if not number else 2:02x} {words} {len(pointers):03d} "
        f'{" ".join(pointers)} | {gloss}; "an example"  '
    )


LINES = tuple(_line(number) for number in range(NUM))


def write_wordnet(folder: Path, num: int = NUM) -> Path:
    """The first ``num`` synsets below a licence, as ``data.noun``; pointers to later ones are left out."""
    lines = []
    for number in range(num):
        data, _, gloss = LINES[number].partition(" | ")
        fields = data.split()
        at = 4 + 2 * int(fields[3], 16)
        pointers = [fields[p : p + 4] for p in range(at + 1, len(fields), 4)]
        kept = [p for p in pointers if p[2] == "v" or int(p[1]) <= 100 * num]
        lines.append(" ".join([*fields[:at], f"{len(kept):03d}", *(" ".join(p) for p in kept)]) + f" | {gloss}")
    head = "  1 This is made in the format of WordNet 3.0\n  2 and holds nothing of it\n"
    (folder / "data.noun").write_text(head + "\n".join(lines) + "\n")
    return folder
