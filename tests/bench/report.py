"""How benchmark results are written: one line per figure, its baseline of the same run, and the ratio."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def line(
    what: str, value: float, unit: str, *, baseline: tuple[str, float] | None = None, aim: str = "", before: str = ""
) -> None:
    """Print a figure; before: what it was at an earlier release, on two cores."""
    text = f"  {what:<52} {value:>10,.1f} {unit:<6}"
    if baseline is not None:
        name, other = baseline
        text += f" {value / other if other else float('inf'):>7.2f} x {name} ({other:,.1f})"
    print(text + (f"   aim: {aim}" if aim else "") + (f"   before: {before}" if before else ""), flush=True)


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


def skipped(reason: str) -> None:
    """Say why there is no figure."""
    print(f"  not measured: {reason}", flush=True)
