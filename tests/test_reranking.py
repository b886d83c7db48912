"""Re-ranking against recorded numbers and against the definition, read slowly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.functional import k_reciprocal_rerank

SETTINGS = [(20, 6, 0.3), (50, 15, 0.3), (20, 1, 0.3), (7, 3, 0.5)]


def slow_rerank(distance, num_queries, k1, k2, lambda_value):
    """Read the definition literally, on lists of lists of Python numbers."""
    everyone = range(len(distance))
    farthest = [max(distance[j][i] for j in everyone) or 1.0 for i in everyone]
    scaled = [[distance[i][j] / farthest[i] for j in everyone] for i in everyone]
    ranking = [sorted(everyone, key=lambda j: (distance[i][j], j)) for i in everyone]

    def mutual(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    half = k1 // 2 + (1 if k1 % 4 == 3 else 0)  # k1 / 2, halves to the even side
    weights = []
    for i in everyone:
        start = mutual(i, k1)
        expanded = set(start)
        for member in start:
            other = mutual(member, half)
            if 3 * len(other & start) > 2 * len(other):
                expanded |= other
        weight = {j: math.exp(-scaled[i][j]) for j in expanded}
        weights.append({j: weight[j] / sum(weight.values()) for j in weight})
    if k2 != 1:
        averaged = []
        for i in everyone:
            near = ranking[i][:k2]
            columns = {j for n in near for j in weights[n]}
            averaged.append(
                {j: sum(weights[n].get(j, 0) for n in near) / len(near) for j in columns}
            )
        weights = averaged
    result = []
    for q in range(num_queries):
        row = []
        for g in range(num_queries, len(distance)):
            shared = sum(min(weights[q][j], weights[g].get(j, 0)) for j in weights[q])
            jaccard = 1 - shared / (2 - shared)
            row.append((1 - lambda_value) * jaccard + lambda_value * scaled[q][g])
        result.append(row)
    return torch.tensor(result, dtype=torch.float64)


def slow_rerank_of_features(queries, gallery, *parameters):
    rows = [row.tolist() for row in torch.cat([queries, gallery]).double()]
    distance = [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    return slow_rerank(distance, len(queries), *parameters)


@st.composite
def problems(draw):
    """Draw points of a coarse grid: exact in any precision, with many ties and duplicates."""
    num_queries, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    width, side = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 1000]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    rows = torch.randint(side, (num_queries + num_gallery, width), generator=random)
    k1, k2 = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    parameters = k1, k2, draw(st.sampled_from([0.0, 0.3, 1.0]))
    return rows[:num_queries].double(), rows[num_queries:].double(), parameters


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), SETTINGS)
def test_it_equals_the_recorded_algorithm(golden, k1, k2, lambda_value):
    recorded = golden("rerank")
    expected = recorded[f"k1={k1},k2={k2},lambda={lambda_value}.float64"]
    features = recorded["query"], recorded["gallery"]
    exact = k_reciprocal_rerank(*(x.double() for x in features), k1, k2, lambda_value)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)
    single = k_reciprocal_rerank(*features, k1, k2, lambda_value)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


def test_the_reading_below_equals_the_recorded_algorithm_too(golden):
    recorded = golden("rerank")
    features = recorded["query"], recorded["gallery"]
    slow = slow_rerank_of_features(*features, 7, 3, 0.5)
    expected = recorded["k1=7,k2=3,lambda=0.5.float64"]
    torch.testing.assert_close(slow, expected, rtol=0, atol=1e-6)  # float32 rounds at the source


@settings(deadline=None, max_examples=200)
@given(problems(), st.integers(1, 9))
def test_it_equals_a_literal_reading_with_ties_duplicates_and_few_rows(problem, tile_rows):
    queries, gallery, parameters = problem
    expected = slow_rerank_of_features(queries, gallery, *parameters)
    result = k_reciprocal_rerank(queries, gallery, *parameters, tile_rows=tile_rows)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
