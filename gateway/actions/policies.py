"""How the bodies of a route are watched: said with the config, the same for every exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.config import Route
from gateway.observe.stats import Direction, Side
from gateway.transfer.stall import Course, Pace


@dataclass(frozen=True, slots=True)
class AnswerCourses:
    """What an upstream's answers are held to."""

    #: A body of known length is a file: it may be held to a rate.
    sized: Course
    #: One without may be a stream of events.
    endless: Course


def upload_course(route: Route, write_side: Side, write_pace: Pace) -> Course:
    """Return the course of request bodies towards `write_side`."""
    total = route.timeouts.total
    return Course(Direction.UPLOAD, Side.DOWNSTREAM_READ, write_side, _client_pace(route), write_pace, total)


def download_course(route: Route, read_side: Side, read_pace: Pace) -> Course:
    """Return the course of answers' bodies from `read_side`."""
    total = route.timeouts.total
    return Course(Direction.DOWNLOAD, read_side, Side.DOWNSTREAM_WRITE, read_pace, _client_pace(route), total)


def answer_courses(route: Route, idle_seconds: float) -> AnswerCourses:
    """Return the courses of an upstream's answers, where it may be silent for so long."""
    sized = download_course(route, Side.UPSTREAM_READ, upstream_pace(route, idle_seconds))
    return AnswerCourses(sized, download_course(route, Side.UPSTREAM_READ, Pace(idle_seconds)))


def upstream_pace(route: Route, idle_seconds: float) -> Pace:
    """Return how slow an upstream may take a request body, where it may be silent for so long."""
    return Pace(idle_seconds, route.timeouts.min_rate, route.timeouts.grace)


def _client_pace(route: Route) -> Pace:
    timeouts = route.timeouts
    return Pace(timeouts.idle, timeouts.min_rate, timeouts.grace if timeouts.min_rate else math.inf)
