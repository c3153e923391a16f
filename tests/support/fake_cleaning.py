"""What a test says of the cleaning of projects."""

from collections import Counter


class FakeCleaning:
    """Projects that are being cleaned, by the prefix of their keys."""

    def __init__(self) -> None:
        self.prefixes: set[str] = set()
        self.requests: Counter[str] = Counter()

    def is_being_cleaned(self, key: str) -> bool:
        return any(key.startswith(prefix) for prefix in self.prefixes)

    def cleanings(self, key: str) -> int:
        return sum(count for prefix, count in self.requests.items() if key.startswith(prefix))
