"""Products of matrices: by whichever routine, they are right, and the routine is chosen by time."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.functional import products


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.sampled_from([torch.float32, torch.float64]))
def test_products_of_pairs_are_those_of_the_whole_and_know_no_order(seed, dtype):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(9, 33, generator=random, dtype=dtype)
    columns = torch.randn(7, 33, generator=random, dtype=dtype)
    chosen = torch.randperm(9 * 7, generator=random)[:20].sort()[0]
    first, second = chosen // 7, chosen % 7
    order = second.argsort(stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_PAIR_ENTRIES", 100)  # three pairs at once
        for multiply in (products.pair_products, products._sampled, products._gathered):
            found = multiply(rows, columns, first, second)
            torch.testing.assert_close(found, (rows @ columns.T)[first, second])
            turned = multiply(columns, rows, second[order], first[order])
            assert torch.equal(turned, found[order])
            alone = multiply(rows, columns, first[5:6], second[5:6])
            assert torch.equal(alone, found[5:6])


def test_a_pair_wider_than_what_is_gathered_at_once_is_gathered_alone(monkeypatch):
    monkeypatch.setattr(products, "_PAIR_ENTRIES", 2)
    rows, every = torch.arange(6.0).view(2, 3), torch.tensor([0, 1])
    assert products._gathered(rows, rows, every, every).tolist() == [5, 50]


def test_no_pairs_have_no_products():
    none = torch.empty(0, dtype=torch.long)
    found = products.pair_products(
        torch.zeros(2, 3).double(), torch.zeros(4, 3).double(), none, none
    )
    assert found.shape == (0,)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_by_convolution_is_the_product(monkeypatch, threads):
    monkeypatch.setattr(products, "_LARGE", 0)
    monkeypatch.setattr(products, "convolution_is_faster", lambda threads: True)
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(37, 50, generator=random), torch.randn(64, 50, generator=random)
    start = torch.randn(37, 64, generator=random)
    torch.set_num_threads(threads)
    try:
        result = products.add_products(start.clone(), rows, columns, -2)
    finally:
        torch.set_num_threads(1)
    exact = start.double() - 2 * rows.double() @ columns.double().T
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)


def test_only_large_products_of_plain_float32_are_made_by_convolution(monkeypatch):
    made, convolve = [], products._convolve
    monkeypatch.setattr(products, "_LARGE", 120)
    monkeypatch.setattr(products, "convolution_is_faster", lambda threads: True)
    monkeypatch.setattr(
        products, "_convolve", lambda rows, columns: made.append(1) or convolve(rows, columns)
    )
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(3, 8, generator=random), torch.randn(5, 8, generator=random)

    def by_convolution(rows, columns):
        made.clear()
        start = torch.zeros(len(rows), len(columns), dtype=rows.dtype)
        assert products.add_products(start, rows, columns, 3) is start
        torch.testing.assert_close(start, 3 * rows @ columns.T)
        return bool(made)

    assert by_convolution(rows, columns)  # 3 times 5 times 8 multiplications
    assert not by_convolution(rows, columns[:4])
    assert not by_convolution(rows.double(), columns.double())
    assert not by_convolution(rows.T.contiguous().T, columns)
    assert not by_convolution(rows, columns.T.contiguous().T)
    monkeypatch.setattr(products.torch, "get_float32_matmul_precision", lambda: "high")
    assert not by_convolution(rows, columns)  # who asks for less precision gets the faster routine
    monkeypatch.undo()
    monkeypatch.setattr(products, "_LARGE", 120)
    monkeypatch.setattr(products, "convolution_is_faster", lambda threads: False)
    monkeypatch.setattr(products, "_convolve", lambda rows, columns: pytest.fail("it is slower"))
    assert not by_convolution(rows, columns)


def test_products_of_bfloat16_are_written_where_they_are_wanted():
    random = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(4, 8, generator=random).bfloat16() for _ in range(2))
    result = torch.empty(4, 4, dtype=torch.bfloat16)
    assert products.multiply_halves(rows, columns, result) is result
    exact = rows.double() @ columns.double().T
    torch.testing.assert_close(result.double(), exact, rtol=0.01, atol=1e-3)


# --- what is measured ------------------------------------------------------------------------


def test_the_measured_choices_have_an_answer():
    assert products.convolution_is_faster(torch.get_num_threads()) in (True, False)
    assert products.bfloat16_is_faster(torch.get_num_threads()) in (True, False)


def rounded_once(rows, columns):
    return (rows.double() @ columns.double()).to(rows.dtype)


def rounded_on_the_way(rows, columns):
    total = torch.zeros(len(rows), columns.shape[1], dtype=rows.dtype)
    for place in range(rows.shape[1]):
        total += rows[:, place, None] * columns[place]
    return total


@pytest.fixture
def processor(monkeypatch):
    """A processor on which products take as long, and round, as the test says."""
    answers = products.convolution_is_faster, products.bfloat16_is_faster

    def make(convolution, product, halves, multiply=rounded_once):
        def seconds(work):
            result = work()
            if result.dtype == torch.bfloat16:
                return halves
            return product if result.numel() else convolution

        monkeypatch.setattr(products, "_TRIAL", (8, 8, 64))
        monkeypatch.setattr(products, "_seconds", seconds)
        monkeypatch.setattr(products, "_convolve", lambda rows, columns: torch.empty(0))
        monkeypatch.setattr(products.torch, "mm", multiply)
        return [answer(1) for answer in answers]

    for answer in answers:
        answer.cache_clear()
    yield make
    for answer in answers:
        answer.cache_clear()


@pytest.mark.parametrize(
    ("times", "convolution", "halves"),
    [
        ((4, 8, 2), True, True),
        ((4, 8, 3.6), True, False),  # of the two in float32 the faster is the one to beat
        ((4, 4.8, 3.6), False, True),  # 1.2 times is not clearly faster
        ((8, 4, 2.8), False, True),
        ((8, 4, 3.6), False, False),
    ],
)
def test_a_routine_is_chosen_where_it_is_clearly_the_fastest(processor, times, convolution, halves):
    assert processor(*times) == [convolution, halves]


def test_bfloat16_is_not_chosen_where_sums_are_rounded_on_the_way(processor):
    assert processor(4, 8, 1, rounded_on_the_way) == [True, False]


def test_the_shortest_of_some_times_counts(monkeypatch):
    clock, runs = iter([0, 5, 10, 13, 20, 22, 30, 31]), []
    monkeypatch.setattr(products, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert products._seconds(lambda: runs.append(1) or torch.empty(0)) == 1
    assert len(runs) == 4


def test_a_bfloat16_product_is_off_by_one_rounding_of_it_and_one_of_float32_for_every_number():
    one, none = torch.ones(()), torch.zeros(())
    half, single = 2.0**-8, 2.0**-24  # half a unit in the last of 8 and of 24 binary digits
    assert half <= products.rounding_of_bfloat16(one, none, 100) <= 1.1 * half
    assert 100 * single <= products.rounding_of_bfloat16(none, one, 100) <= 110 * single
