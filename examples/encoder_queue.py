"""A queue of tracklets before encoders, simulated: who waits how long, and who is idle.

Cameras send tracklets at random moments, more of them at some hours than at others; encoders take
them in their order, each as long as its frames need. ``plan_scale.py simulate`` prints tables.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

DAY, HOUR = 86_400, 3_600  # seconds

# How many people pass in each hour, from midnight, as shares: assumed, and the thing to replace.
PROFILE = (1, 1, 1, 1, 1, 2, 4, 7, 9, 7, 6, 6, 7, 6, 6, 7, 8, 9, 8, 6, 4, 3, 2, 1)


def draw_arrivals(
    per_day: float, days: float, source: random.Random, profile: Sequence[float] = PROFILE
) -> list[float]:
    """Draw when tracklets end, in seconds: a Poisson process whose rate follows a day's hours.

    Args:
        per_day: Tracklets of a day, in the mean.
        days: For how long.
        source: Of random numbers.
        profile: Share of each of 24 hours, above 0.
    """
    shares = list(itertools.accumulate((hour / sum(profile) for hour in profile), initial=0.0))
    arrivals, passed = [], 0.0  # in days' worth of tracklets
    while True:
        passed -= math.log(1 - source.random()) / per_day
        day, rest = divmod(passed, 1.0)
        hour = min(bisect.bisect_right(shares, rest), len(profile)) - 1
        within = (rest - shares[hour]) / (shares[hour + 1] - shares[hour])
        moment = day * DAY + (hour + within) * HOUR
        if moment >= days * DAY:
            return arrivals
        arrivals.append(moment)


def draw_services(count: int, mean: float, spread: float, source: random.Random) -> list[float]:
    """Draw how long each tracklet takes: log-normal, as lengths of tracklets are; 0: all alike."""
    if spread == 0:
        return [mean] * count
    normal = statistics.NormalDist(math.log(mean) - spread**2 / 2, spread)
    return [math.exp(normal.inv_cdf(max(source.random(), 1e-12))) for _ in range(count)]


def serve(arrivals: Sequence[float], services: Sequence[float], encoders: int) -> list[float]:
    """Return when each tracklet is begun: in order, by whichever encoder is free first."""
    free = [0.0] * encoders
    starts = []
    for arrival, service in zip(arrivals, services, strict=True):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        starts.append(start)
    return starts


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was seen of a queue.

    Args:
        busy: Share of the encoders' time in which they worked, until the end.
        waiting: Tracklets that waited, mean over time.
        most_waiting: The most at once.
        left: Waiting at the end.
        delays: From a tracklet's end to its vector, in seconds, ascending.
    """

    busy: float
    waiting: float
    most_waiting: int
    left: int
    delays: Sequence[float]

    def delay(self, share: float) -> float:
        """Return the delay that a share of the tracklets does not exceed."""
        if not self.delays:
            return 0.0
        return self.delays[min(len(self.delays) - 1, int(share * len(self.delays)))]


def observe(
    arrivals: Sequence[float], services: Sequence[float], encoders: int, end: float
) -> Outcome:
    """Simulate a queue and look at it until its end, in seconds."""
    starts = serve(arrivals, services, encoders)
    worked = (
        min(start + service, end) - start
        for start, service in zip(starts, services, strict=True)
        if start < end
    )
    waited = (min(start, end) - a for a, start in zip(arrivals, starts, strict=True))
    most = 0
    for place, arrival in enumerate(arrivals):  # in the order of arrival, and begun in it
        most = max(most, place + 1 - bisect.bisect_right(starts, arrival))
    delays = (s + t - a for a, s, t in zip(arrivals, starts, services, strict=True))
    return Outcome(
        busy=sum(worked) / (encoders * end),
        waiting=sum(waited) / end,
        most_waiting=most,
        left=len(starts) - bisect.bisect_right(starts, end),
        delays=sorted(delays),
    )
