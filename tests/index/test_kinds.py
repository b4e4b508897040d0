import pytest

from netvlad_deploy.errors import UsageError
from netvlad_deploy.index.kinds import (
    AUTO,
    FLAT,
    FLOAT16,
    GIB,
    HNSW,
    INDEXED,
    IVF,
    SCANNED_BYTES,
    TRAINING_BYTES,
    choose,
)

PLENTY = 2**50


@pytest.mark.parametrize(
    ("count", "size", "kind"),
    [
        (1, 1, FLAT),
        (SCANNED_BYTES // (4 * 4096), 4096, FLAT),
        (SCANNED_BYTES // (4 * 4096) + 1, 4096, FLOAT16),
        (SCANNED_BYTES // (2 * 4096), 4096, FLOAT16),
        (SCANNED_BYTES // (2 * 4096) + 1, 4096, IVF),
        (10_000_000, 4096, IVF),
    ],
)
def test_auto_takes_what_one_search_can_read(count: int, size: int, kind: str) -> None:
    assert choose(AUTO, count, size, PLENTY).kind == kind


def test_auto_halves_the_values_where_the_memory_is_short() -> None:
    count = 10_000
    assert choose(AUTO, count, 512, count * 512 * 4).kind == FLAT
    assert choose(AUTO, count, 512, count * 512 * 4 - 1).kind == FLOAT16


@pytest.mark.parametrize("kind", [AUTO, *INDEXED])
def test_what_does_not_fit_is_refused_with_its_size(kind: str) -> None:
    with pytest.raises(
        UsageError, match=r"1000000 descriptors of 4096 values take \d+\.\d GiB as \w+, --memory allows 1"
    ):
        choose(kind, 1_000_000, 4096, GIB)


def test_the_sample_of_an_ivf_is_bounded() -> None:
    small, large = choose(IVF, 500, 4096, PLENTY), choose(IVF, 10**7, 4096, PLENTY)
    assert (small.samples, small.lists) == (500, 12)
    assert large.samples * 4096 * 4 <= TRAINING_BYTES
    assert large.factory == f"IVF{large.lists},SQfp16"
    assert choose(IVF, 1, 8, PLENTY).lists == 1
    assert choose(HNSW, 500, 8, PLENTY).lists == 0
