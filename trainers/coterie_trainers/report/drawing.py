"""The learning curve as an inline SVG picture, drawn with the page's own colours."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.report.figures import Curve

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 34


def draw_curve(curve: Curve) -> str:
    """Success over steps: a line for the steps' own rollouts, diamonds for validation. Empty without any point."""
    if not (curve.train or curve.val):
        return ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="curve-title curve-text">'
        '<title id="curve-title">Success by training step</title>'
        f'<desc id="curve-text">{_described(curve)}</desc>{"".join(_shapes(curve))}</svg>'
    )


def _described(curve: Curve) -> str:
    told = []
    for name, points in (("The steps' own rollouts", curve.train), ("Validation", curve.val)):
        if points:
            first, last = points[0], points[-1]
            told.append(
                f"{name}: from {first.success:.0%} at step {first.step} to {last.success:.0%} at step {last.step}."
            )
    return " ".join(told)


def _shapes(curve: Curve) -> Iterator[str]:
    steps = [point.step for point in (*curve.train, *curve.val)]
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(success: float) -> float:
        return HEIGHT - BOTTOM - min(1.0, max(0.0, success)) * (HEIGHT - TOP - BOTTOM)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
    for step in sorted({first, (first + last) // 2, last}):
        yield f'<text x="{x(step):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step}</text>'
    if curve.train:
        places = " ".join(f"{x(point.step):.1f},{y(point.success):.1f}" for point in curve.train)
        yield f'<polyline class="train" points="{places}"/>'
        for point in curve.train:
            yield (
                f'<circle class="train" cx="{x(point.step):.1f}" cy="{y(point.success):.1f}" r="2">'
                f"<title>step {point.step}: {point.success:.1%}</title></circle>"
            )
    for point in curve.val:
        across, down = x(point.step), y(point.success)
        yield (
            f'<path class="val" d="M{across:.1f} {down - 6:.1f} l6 6 l-6 6 l-6 -6 z">'
            f"<title>step {point.step}, validation: {point.success:.1%}</title></path>"
        )
    yield f'<circle class="train" cx="{LEFT + 6}" cy="12" r="4"/><text x="{LEFT + 16}" y="16">the step\'s rollouts</text>'
    yield f'<path class="val" d="M{LEFT + 150} 6 l6 6 l-6 6 l-6 -6 z"/><text x="{LEFT + 162}" y="16">validation</text>'
