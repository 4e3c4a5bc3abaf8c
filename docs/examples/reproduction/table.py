"""Rounds to a target accuracy by local epochs E and batch size B, out of curves.csv.

    python table.py CURVES.csv TARGET

The learning rate of each cell is the one that reaches the target in the fewest rounds, as the
paper chose it.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path


def rounds_to_target(path: str, target: float) -> dict[tuple[str, str, str], dict[str, int]]:
    """By partition, E and B: for each learning rate that gets there, the first round that does."""
    found: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            swept = dict(pair.split("=") for pair in row["hyperparameters"].split())
            rates = found[row["partition"], swept["local-epochs"], swept["batch-size"]]
            if float(row["accuracy"]) >= target:
                rates.setdefault(swept["lr"], int(row["round"]))
    return found


def table(path: str, target: float) -> list[str]:
    """Lines of a Markdown table, FedSGD (E = 1, B = all) first."""
    found = rounds_to_target(path, target)
    lines = ["| partition | E | B | rounds | against FedSGD | lr |", "|---|--:|--:|--:|--:|--:|"]
    for partition in dict.fromkeys(key[0] for key in found):
        keys = [key for key in found if key[0] == partition]
        keys.sort(key=lambda key: (-int(key[2]), int(key[1])))
        first = min(found[keys[0]].values(), default=0)
        for key in keys:
            rates = found[key]
            batch = "all" if int(key[2]) >= 1000 else key[2]
            cells = ["never", "-", "-"]
            if rates:
                lr = min(rates, key=lambda rate: rates[rate])
                times = f"{first / rates[lr]:.1f}x" if first else "-"
                cells = [str(rates[lr]), times, lr]
            lines.append("| " + " | ".join([partition, key[1], batch, *cells]) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(sys.argv[1], float(sys.argv[2]))))
