"""Parses OpenMetrics text on stdin strictly and prints its metric families as JSON."""

import json
import math
import sys
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar


def number(value: float) -> float | str:
    """JSON has no NaN and no infinities."""
    return value if math.isfinite(value) else str(value)


def exemplar(found: Exemplar | None) -> dict[str, Any] | None:
    if found is None:
        return None
    timestamp = None if found.timestamp is None else float(found.timestamp)
    return {"labels": found.labels, "value": number(found.value), "timestamp": timestamp}


def parse(text: str) -> list[Metric]:
    families = list(text_string_to_metric_families(text))
    # The parser drops, without a word, a sample that repeats the one before it.
    lines = sum(not line.startswith("#") for line in text.removesuffix("\n").split("\n"))
    if lines != sum(len(family.samples) for family in families):
        raise ValueError("duplicate samples")
    return families


def main() -> int:
    try:
        families = parse(sys.stdin.buffer.read().decode())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    report = [
        {
            "name": family.name,
            "type": family.type,
            "help": family.documentation,
            "samples": [
                [sample.name, sample.labels, number(sample.value), exemplar(sample.exemplar)]
                for sample in family.samples
            ],
        }
        for family in families
    ]
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
