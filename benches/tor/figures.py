"""Figures of interleaved rounds, and how far each is from its goal."""

import statistics

ROUNDS = 5


class Table:
    """Values of each figure of each route, a round each, in the order in which they came first."""

    def __init__(self, unit):
        self.unit, self.values = unit, {}

    def add(self, what, route, value):
        self.values.setdefault((what, route), []).append(value)

    def of(self, what, route):
        return statistics.median(self.values[what, route])

    def print(self):
        for (what, route), values in self.values.items():
            print(f"{what:22} {route:22} {statistics.median(values):10.4g} {self.unit}"
                  f"  ({min(values):.4g} to {max(values):.4g})", flush=True)

    def ratio(self, what, route, by, **goal):
        verdict(f"{what}: {route} / {by}", self.of(what, route) / self.of(what, by), **goal)


def verdict(what, value, least=None, most=None):
    """One line: the figure, the goal (either may be none) and whether it is reached."""
    text = f"  {what:44} {value:8.3g}"
    if least is not None:
        text += f"   goal at least {least:g}: {'reached' if value >= least else 'MISSED'}"
    if most is not None:
        text += f"   goal at most {most:g}: {'reached' if value <= most else 'MISSED'}"
    print(text, flush=True)
