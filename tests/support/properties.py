"""Properties as campaigns: hypothesis chooses the examples, and makes a failing one small."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy, tuples

from tests.support.campaign import Campaign


def for_examples(
    campaign: Campaign, *strategies: SearchStrategy[Any], short: int, long: int
) -> Callable[[Callable[..., None]], None]:
    """Runs what it decorates, at once, with so many examples of the strategies; each is a round."""
    chosen = settings(
        max_examples=campaign.planned(short, long),
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def run(check: Callable[..., None]) -> None:
        def tried(example: tuple[Any, ...]) -> None:
            campaign.ran()
            check(*example)

        seed(campaign.random.randrange(1 << 32))(chosen(given(tuples(*strategies))(tried)))()

    return run
