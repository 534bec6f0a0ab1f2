from __future__ import annotations

from ssmke.data.dealing import SAMPLE_OVERHEAD, deal


def dealt(sizes: list[int], most_images: int, most_bytes: int) -> list[int]:
    shards = list(deal(sizes, most_images, most_bytes))
    assert [i for shard in shards for i in range(len(sizes))[shard]] == list(range(len(sizes)))
    return [shard.stop - shard.start for shard in shards]


def test_shards_are_filled_up_to_their_bounds_in_order() -> None:
    assert dealt([10] * 7, 3, 1 << 30) == [3, 3, 1]
    assert dealt([], 3, 1 << 30) == []
    two = 2 * (100 + SAMPLE_OVERHEAD)
    assert dealt([100] * 5, 1000, two) == [2, 2, 1]
    assert dealt([100] * 5, 1000, two - 1) == [1] * 5
    assert dealt([100, 5 * two, 100, 100], 1000, two) == [1, 1, 2]
