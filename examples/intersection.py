"""Teacher and student of `examples/intersection.yaml`: turn left at a crossing, among some ten other cars.

The teacher predicts where the others will be, if they keep their speed on the way to their destination, and goes as
soon as its own way is free for four seconds. A decision takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium
import highway_env  # noqa: F401  registers intersection-v0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill import NetworkPolicy, PolicySpec, Student

Array = NDArray[Any]
SLOWER, FASTER = 0, 2
PLANS = [[SLOWER] * wait + [FASTER] * (4 - wait) for wait in range(5)]
"""Go now, or after up to four seconds."""
DT, SPACING = 0.2, 0.5
"""Seconds between predictions, and meters between the points of a way."""
SPEED_STEP, REACTION_TIME = 4.5, 0.6
"""Of one's own car: m/s by which an action changes the wanted speed, and time constant of the speed in seconds."""
CIRCLES, MIN_DISTANCE = np.array([-1.6, 0.0, 1.6]), 2.9
"""Centers of three circles that cover a car, along its length, and least distance from another car's, in meters."""
OWN_ROUTE, ARRIVED, VANISHED = (0, 1), 75.0, 20.0
"""From south to west; how many meters before the end of the last road an episode ends, and other cars vanish."""


class Ways:
    """Points, directions and destinations of the twelve ways across the crossing, `[12, P, 2]` and `[12, 2]`."""

    def __init__(self) -> None:
        env: Any = gymnasium.make("intersection-v0").unwrapped
        env.reset(seed=0)
        routes = [(start, end) for start in range(4) for end in range(4) if start != end]
        self.own = routes.index(OWN_ROUTE)
        points, directions = [], []
        for start, end in routes:
            nodes = [f"o{start}", f"ir{start}", f"il{end}", f"o{end}"]
            lanes = [env.road.network.get_lane((*pair, 0)) for pair in pairwise(nodes)]
            places = [(lane, along) for lane in lanes for along in np.arange(0, lane.length, SPACING)]
            points.append([lane.position(along, 0) for lane, along in places])
            headings = [lane.heading_at(along) for lane, along in places]
            directions.append([(np.cos(heading), np.sin(heading)) for heading in headings])
        self.lengths = np.array([len(way) for way in points])
        longest = range(self.lengths.max())
        self.points, self.directions = (
            np.array([[way[min(number, len(way) - 1)] for number in longest] for way in ways])
            for ways in (points, directions)
        )
        self.ends = self.points[:, -1]

    def nearest(self, places: Array, directions: Array, aims: Array) -> tuple[Array, Array]:
        """Return the way of each car, and the nearest point on it, by place, direction and destination."""
        distance = np.linalg.norm(places[:, None, None] - self.points, axis=-1)
        turned = 1 - np.einsum("ck,wpk->cwp", directions, self.directions)
        to_end = self.ends - places[:, None]
        astray = 1 - np.einsum("ck,cwk->cw", aims, to_end / np.linalg.norm(to_end, axis=-1, keepdims=True))
        cost = distance + 5 * turned + 20 * astray[:, :, None]
        way, point = np.unravel_index(cost.reshape(len(cost), -1).argmin(1), cost.shape[1:])
        return way, point

    def circles(self, way: Any, point: Array) -> Array:
        """Return the centers of the circles of cars at these points, `[..., 3, 2]`."""
        point = np.minimum(point.astype(int), self.points.shape[1] - 1)
        return self.points[way, point][..., None, :] + CIRCLES[:, None] * self.directions[way, point][..., None, :]


def driven(speed: float) -> Array:
    """Return how far one's own car comes by each plan, `[plans, times]`, in meters."""
    found = []
    for plan in PLANS:
        now, along, row = speed, 0.0, []
        for action in plan:
            wanted = SPEED_STEP * np.clip(round(now / SPEED_STEP) + action - 1, 0, 2)
            for _ in range(round(1 / DT)):
                later = wanted + (now - wanted) * np.exp(-DT / REACTION_TIME)
                along += DT * (now + later) / 2
                now = later
                row.append(along)
        found.append(row)
    return np.array(found)


def planner() -> Callable[[Array], int]:
    """Return the teacher: it follows the first of `PLANS` without a collision, else the one with the latest."""
    ways = Ways()
    times = DT * np.arange(1, 1 + len(driven(0.0)[0]))

    def act(obs: Array) -> int:
        cars = obs[obs[:, 0] > 0].astype(float)
        if len(cars) < 2:
            return FASTER
        places, speeds = 100 * cars[:, 1:3], 20 * np.linalg.norm(cars[:, 3:5], axis=1)
        own_point = np.linalg.norm(places[0] - ways.points[ways.own], axis=1).argmin() + driven(speeds[0]) / SPACING
        way, point = ways.nearest(places[1:], cars[1:, 5:7], cars[1:, 7:9])
        points = point[:, None] + speeds[1:, None] * times / SPACING
        own = ways.circles(ways.own, own_point)[:, None, :, :, None]
        others = ways.circles(way[:, None], points)[None, :, :, None, :]
        hit = np.linalg.norm(own - others, axis=-1).min((-1, -2)) < MIN_DISTANCE  # [plans, cars, times]
        hit[:, points > ways.lengths[way, None] - VANISHED / SPACING] = False
        collides = hit.any(1) & (own_point < ways.lengths[ways.own] - ARRIVED / SPACING)
        seconds = np.where(collides.any(1), collides.argmax(1), np.inf)
        return PLANS[int(seconds.argmax())][0]

    return act


class CarNetwork(nn.Module):
    """A network for each other car beside one's own, and the maximum over the cars (Deep Sets, Zaheer et al. 2017)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        # 1 is 100 m and 20 m/s in the observation, but 10 m and 5 m/s here: a few meters matter.
        self.register_buffer("scale", torch.tensor([1.0, 10.0, 10.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]))
        self.register_buffer("relative", torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
        width = len(self.scale)
        self.each = nn.Sequential(nn.Linear(2 * width, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(width + size, size), nn.ReLU())

    def forward(self, cars: Tensor) -> Tensor:
        """Map `[B, cars, features]` to `[B, size]`."""
        present, cars = cars[:, 1:, :1], cars * self.scale
        own, others = cars[:, :1], cars[:, 1:]
        pairs = torch.cat([own.expand_as(others), others - own * self.relative], 2)
        return self.all(torch.cat([cars[:, 0], (self.each(pairs) * present).amax(1)], 1))


@dataclass(frozen=True)
class CarSet(Student):
    """Student for which the order of the cars does not matter."""

    size: int = 64

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        policy = NetworkPolicy(self, spec, CarNetwork(self.size), self.size)
        policy.normalizes_itself = True
        return policy
