"""What rollouts cost: LLM calls and tokens as their spans have them, money by the prices of the models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coterie import conventions as c
from coterie.errors import ConfigError
from coterie.foreign.attributes import parsed
from coterie.vocabulary import Span
from coterie_trainers.prompts.budget import Usage
from coterie_trainers.prompts.config import Price

CHARACTERS_A_TOKEN = 4
"""By which tokens are estimated where a model reports no usage."""
_MILLION = 1_000_000


def money(price: Price | None, input_tokens: int, output_tokens: int) -> float:
    """What a call costs; 0 without a price."""
    if price is None:
        return 0.0
    return (price.input * input_tokens + price.output * output_tokens) / _MILLION


@dataclass(slots=True)
class Costs:
    """Adds up what spans say, and remembers what they did not say."""

    prices: Mapping[str, Price]
    must_have_prices: bool = False
    """True where money is limited: a model without a price is an error then."""
    unpriced: set[str] = field(default_factory=set)
    """Models that have no price."""
    estimated: int = 0
    """Calls whose tokens were estimated from the length of their texts."""

    def of(self, spans: Iterable[Span]) -> Usage:
        """What the LLM calls among spans cost. A call that client and gateway both recorded, or that was tried again, is one.

        Raises:
            ConfigError: money is limited and a model has no price.
        """
        calls: dict[str, list[Span]] = {}
        for span in spans:
            # What a recording answered, in a replay, cost nothing.
            if span.attributes.get(c.OPERATION) == c.CHAT and c.ANSWERED_BY not in span.attributes:
                calls.setdefault(str(span.attributes.get(c.CALL_ID) or span.span_id), []).append(span)
        total = Usage()
        for recorded in calls.values():
            total = total + self._call(recorded)
        return total

    def _call(self, recorded: list[Span]) -> Usage:
        given = max(_count(span, c.INPUT_TOKENS) for span in recorded)
        made = max(_count(span, c.OUTPUT_TOKENS) for span in recorded)
        if not given and not made:
            self.estimated += 1
            given = max(_estimate(span, c.INPUT_MESSAGES) for span in recorded)
            made = max(_estimate(span, c.OUTPUT_MESSAGES) for span in recorded)
        return Usage(1, given, made, money(self._price(recorded[0]), given, made))

    def _price(self, span: Span) -> Price | None:
        names = [str(span.attributes[key]) for key in (c.REQUEST_MODEL, c.RESPONSE_MODEL) if span.attributes.get(key)]
        found = next((self.prices[name] for name in names if name in self.prices), None)
        if found is None and names:
            if self.must_have_prices:
                there = ", ".join(map(repr, self.prices))
                raise ConfigError(
                    f"prices: the team called the model {names[0]!r}, which has no price; there are: {there}. Add it, and run "
                    "the same command again: nothing that was played is lost."
                )
            self.unpriced.add(names[0])
        return found


def _count(span: Span, key: str) -> int:
    value = span.attributes.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _estimate(span: Span, key: str) -> int:
    return -(-len(str(parsed(span.attributes.get(key)) or "")) // CHARACTERS_A_TOKEN)
