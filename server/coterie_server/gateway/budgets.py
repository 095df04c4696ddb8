"""What each rollout has used, and what it may use."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from coterie.vocabulary import JSON
from coterie_server.gateway.errors import Refusal, bad_request, exhausted
from coterie_server.gateway.settings import Budget, Price

REMEMBERED = 20_000
"""Rollouts whose use is kept. The least recently used is forgotten first."""


@dataclass(slots=True, eq=False)
class Account:
    """One rollout's use."""

    budget: Budget
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    version: int | None = None
    """The policy version of its first answer, where one is to give all."""
    allowance: float = field(init=False)
    """Calls that it may make at once, refilled each minute by the budget's ``calls_per_minute``."""
    refilled: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.allowance = self.budget.calls_per_minute or 0.0

    def admit(self, rollout_id: str) -> None:
        """Count a call that is about to be made.

        Raises:
            Refusal: 429, the rollout has used up its budget or calls too often.
        """
        budget = self.budget
        for used, limit, what in (
            (self.calls, budget.calls, "calls"),
            (self.tokens, budget.tokens, "tokens"),
            (self.cost, budget.cost, "cost"),
        ):
            if limit is not None and used >= limit:
                raise exhausted(f"Rollout {rollout_id} has used up its budget: {what} {used:g} of {limit:g}.")
        if budget.calls_per_minute is not None:
            self._take_one(rollout_id, budget.calls_per_minute)
        self.calls += 1

    def used(self, input_tokens: int, output_tokens: int, price: Price | None) -> None:
        """Count what a call took."""
        self.tokens += input_tokens + output_tokens
        if price is not None:
            self.cost += (input_tokens * price.input + output_tokens * price.output) / 1_000_000

    def _take_one(self, rollout_id: str, per_minute: float) -> None:
        now = time.monotonic()
        self.allowance = min(per_minute, self.allowance + (now - self.refilled) * per_minute / 60)
        self.refilled = now
        if self.allowance < 1:
            wait = (1 - self.allowance) * 60 / per_minute
            raise Refusal(
                429,
                "rate_limit_error",
                f"Rollout {rollout_id} makes more than {per_minute:g} calls a minute. The next is allowed in {wait:.1f} s.",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, round(wait + 0.5)))},
            )
        self.allowance -= 1


class Accounts:
    """The accounts of rollouts that called of late."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def find(self, rollout_id: str) -> Account | None:
        """A rollout's account, if it has one."""
        account = self._accounts.get(rollout_id)
        if account is not None:
            self._accounts.move_to_end(rollout_id)
        return account

    def open(self, rollout_id: str, metadata: Mapping[str, JSON]) -> Account:
        """A new account.

        Raises:
            Refusal: 400, the rollout's metadata hold a budget that is none.
        """
        account = Account(self._budget_of(rollout_id, metadata))
        self._accounts[rollout_id] = account
        while len(self._accounts) > REMEMBERED:
            self._accounts.popitem(last=False)
        return account

    def _budget_of(self, rollout_id: str, metadata: Mapping[str, JSON]) -> Budget:
        own = metadata.get("budget")
        if own is None:
            return self._budget
        try:
            given = Budget.model_validate(own)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise bad_request(
                f"Rollout {rollout_id}: metadata['budget'] is no budget: "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None
        return self._budget.model_copy(update=given.model_dump(exclude_unset=True))
