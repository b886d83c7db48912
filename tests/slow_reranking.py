"""The definition of k-reciprocal re-ranking, read slowly, and problems to compare it on."""

import math

import torch
from hypothesis import strategies as st


def slow_rerank(
    distance, num_queries, k1, k2, lambda_value, half=None, ranking=None, farthest=None
):
    """Read the definition literally, on lists of lists of Python numbers."""
    everyone = range(len(distance))
    if farthest is None:
        farthest = [max(distance[j][i] for j in everyone) or 1.0 for i in everyone]
    scaled = [[min(1.0, distance[i][j] / farthest[i]) for j in everyone] for i in everyone]
    if ranking is None:
        ranking = [sorted(everyone, key=lambda j: (distance[i][j], j)) for i in everyone]

    def mutual(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    if half is None:
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


def draw(num_queries, num_gallery, width=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    persons = torch.randn(12, width, generator=random)
    who = torch.randint(12, (num_queries + num_gallery,), generator=random)
    rows = persons[who] + 0.7 * torch.randn(len(who), width, generator=random)
    rows = torch.nn.functional.normalize(rows, dim=1)
    return rows[:num_queries], rows[num_queries:]


def clustered(num_rows=700, width=96, seed=0, offset=0.0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    persons = torch.randn(40, width, generator=random)
    who = torch.randint(40, (num_rows,), generator=random)
    return (persons[who] + torch.randn(num_rows, width, generator=random) + offset) * scale
