"""The page's lanes: what every device did over emulated time; a large fleet by profile first, then device by device."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from fedge.report.drawing import colour, frame, gutter, ticks
from fedge.report.markup import Markup, element, join
from fedge.report.record import Answer, Happening, Record
from fedge.report.scale import Scale, seconds_scale
from fedge.report.words import plural, sort_of
from fedge.units import format_bytes, format_seconds

#: Devices that have a lane from the start, those of one profile that have one at all, answers drawn one by one.
MOST_LANES = 64
MOST_ANSWERS = 6000
_LANE = 22
_CROWD = 40
#: Into so many moments the time of a large fleet is cut.
_MOMENTS = 200


class Lanes:
    """A run's answers, losses and gaps by device, and the axis that all its lanes share."""

    def __init__(self, record: Record):
        self.record = record
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.losses: dict[str, list[Happening]] = defaultdict(list)
        self.away: dict[str, list[Happening]] = defaultdict(list)
        for answer in record.answers:
            self.answers[answer.device].append(answer)
        for kept, happenings in ((self.losses, record.losses), (self.away, record.away)):
            for happening in happenings:
                kept[happening.device].append(happening)
        rounds = [event for event in record.events if event.get("event") == "round"]
        self.asked = Counter(str(device) for event in rounds for device in event.get("cohort") or [])
        self.across = seconds_scale(max([record.ended, 1e-9, *(loss.virtual_s for loss in record.losses)]) * 1.005)
        self.whole = len(record.answers) <= MOST_ANSWERS

    def draw(self) -> Markup:
        """A lane for each device; where they are too many, one for each profile, with its devices folded below it."""
        if len(self.record.devices) <= MOST_LANES:
            return self._devices(self.record.devices)
        profiles: dict[str, list[str]] = defaultdict(list)
        for device in self.record.devices:
            profiles[self.record.budgets.get(device, (None, 0))[0] or "no profile"].append(device)
        return join(self._crowds(profiles), [self._folded(name, devices) for name, devices in profiles.items()])

    def _devices(self, devices: Sequence[str]) -> Markup:
        high = _LANE * len(devices)
        words = f"answers and losses of {plural(len(devices), 'device')} over emulated time; the tables below tell them"
        drawn = join(
            self._borders(high),
            [self._lane(device, _LANE * row) for row, device in enumerate(devices)],
            self._axis(high),
        )
        return frame(drawn, high + 42, words, left=gutter(devices), right="4rem")

    def _lane(self, device: str, top: float) -> Markup:
        answers = self.answers[device]
        counted = f"{sum(not answer.late for answer in answers)}/{self.asked[device]}"
        return join(
            element("text", device, x=-10, y=top + 15, class_="label end"),
            element("line", x1=0, x2="100%", y1=top + 11, y2=top + 11, class_="lane"),
            self._slices(answers, top + 5),
            [_gap(gap, self.across, top + 11) for gap in self.away[device]],
            [self._mark(loss, top + 11) for loss in self.losses[device]],
            element("text", counted, x="100%", dx=14, y=top + 15, class_="tick"),
        )

    def _borders(self, high: float) -> list[Markup]:
        places = [self.across.percent(stage.began) for stage in self.record.stages[1:]]
        return [element("line", x1=place, x2=place, y1=0, y2=high, class_="border") for place in places]

    def _axis(self, high: float) -> Markup:
        unit = element("text", f"emulated {self.across.unit}", x="100%", y=high + 36, class_="axis end")
        return join(ticks(self.across, high + 2), unit)

    def _slices(self, answers: Sequence[Answer], y: float) -> list[Markup]:
        """A bar for each answer; where there are too many, one for each stretch without a visible gap."""
        if self.whole:
            return [self._slice(answer.began, answer, y, _told(answer)) for answer in answers]
        drawn: list[Markup] = []
        began, last, count = 0.0, None, 0
        for answer in [*answers, None]:
            near = last and answer and self.across.share(answer.began - last.arrival) < 0.002
            joins = last and answer and near and answer.stage == last.stage
            if last and not joins:
                drawn.append(self._slice(began, last, y, plural(count, "answer")))
            if answer and not joins:
                began, count = answer.began, 0
            last, count = answer, count + 1
        return drawn

    def _slice(self, began: float, answer: Answer, y: float, said: str) -> Markup:
        width = f"{100 * (self.across.share(answer.arrival) - self.across.share(began)):.4g}%"
        kind = f"{colour(answer.stage)} late" if answer.late else colour(answer.stage)
        place = {"x": self.across.percent(began), "y": y, "width": width, "height": 12, "rx": 2}
        return element("rect", element("title", said), class_=kind, **place)

    def _mark(self, loss: Happening, y: float) -> Markup:
        said = f"{loss.device} lost in {loss.said.get('stage')} round {loss.round + 1}: {sort_of(loss)}"
        return _badge(str(loss.said.get("cause")), self.across.percent(self.record.lost_at(loss)), y, said)

    # -- a large fleet -----------------------------------------------------------------------------------------------

    def _crowds(self, profiles: Mapping[str, Sequence[str]]) -> Markup:
        """For each profile how many of its devices were at work at each moment, and where some were lost."""
        high = _CROWD * len(profiles)
        drawn = join(
            self._borders(high),
            [self._crowd(name, devices, _CROWD * row) for row, (name, devices) in enumerate(profiles.items())],
            self._axis(high),
        )
        words = f"devices at work and lost over emulated time, for {plural(len(profiles), 'profile')}"
        lead = "The height is the share of a profile's devices that were at work; at the right, how many it has."
        box = frame(drawn, high + 42, words, left=gutter(list(profiles)), right="6.4rem")
        return join(element("p", lead, class_="lead"), box)

    def _crowd(self, name: str, devices: Sequence[str], top: float) -> Markup:
        low = top + _CROWD - 8
        steps = []
        for moment, (stage, working) in sorted(self._working(devices).items()):
            height = round((_CROWD - 12) * working / len(devices), 2)
            said = f"{working} of {plural(len(devices), 'device')} at work"
            place = {"x": f"{100 * moment / _MOMENTS:.4g}%", "width": f"{100 / _MOMENTS:.4g}%"}
            kind = f"{colour(stage)} crowd"
            steps.append(element("rect", element("title", said), y=low - height, height=height, class_=kind, **place))
        lost: dict[tuple[int, str], list[str]] = defaultdict(list)
        for loss in (loss for device in devices for loss in self.losses[device]):
            moment = int(self.across.share(self.record.lost_at(loss)) * (_MOMENTS // 4))
            lost[moment, str(loss.said.get("cause"))].append(loss.device)
        marks = [
            _badge(cause, f"{100 * moment / (_MOMENTS // 4):.4g}%", low, f"{plural(len(who), 'device')} lost: {cause}")
            for (moment, cause), who in lost.items()
        ]
        return join(
            element("text", name, x=-10, y=low - 6, class_="label end"),
            element("line", x1=0, x2="100%", y1=low, y2=low, class_="lane"),
            steps,
            marks,
            element("text", plural(len(devices), "device"), x="100%", dx=14, y=low - 6, class_="tick"),
        )

    def _working(self, devices: Sequence[str]) -> dict[int, tuple[int, int]]:
        """For each moment of the drawing the stage, and how many of the devices were at work in it."""
        busy: dict[int, set[str]] = defaultdict(set)
        stages: dict[int, int] = {}
        for answer in (answer for device in devices for answer in self.answers[device]):
            first, last = (int(self.across.share(at) * _MOMENTS) for at in (answer.began, answer.arrival))
            for moment in range(first, min(last, _MOMENTS - 1) + 1):
                busy[moment].add(answer.device)
                stages[moment] = max(stages.get(moment, 0), answer.stage)
        return {moment: (stages[moment], len(who)) for moment, who in busy.items()}

    def _folded(self, profile: str, devices: Sequence[str]) -> Markup:
        """The lanes of a profile's devices, those with losses before those with many answers, behind one line."""
        first = sorted(devices, key=lambda d: (-len(self.losses[d]), -len(self.answers[d]), d))[:MOST_LANES]
        shown = [device for device in devices if device in set(first)]
        lost = sum(bool(self.losses[device]) for device in devices)
        left = len(devices) - len(shown)
        return element(
            "details",
            element("summary", f"{profile}: {plural(len(devices), 'device')}, {lost} of them lost at some time"),
            self._devices(shown),
            element("p", f"{plural(left, 'more device')} with fewer losses and answers not drawn", class_="note")
            if left
            else None,
        )


def _told(answer: Answer) -> str:
    said = answer.said
    lines = [
        f"{answer.device}, {said.get('stage')} round {answer.round + 1}" + (", came too late" if answer.late else ""),
        f"{format_seconds(answer.began)} to {format_seconds(answer.arrival)}",
        f"{format_bytes(said.get('bytes_down') or 0)} down, {format_bytes(said.get('bytes_up') or 0)} up",
    ]
    if said.get("peak_memory"):
        lines.append(f"peak {format_bytes(said['peak_memory'])}")
    return "\n".join(lines)


def _gap(gap: Happening, across: Scale, y: float) -> Markup:
    said = f"{gap.device} was not available for {gap.said.get('stage')} round {gap.round + 1}"
    return element("circle", element("title", said), cx=across.percent(gap.virtual_s), cy=y, r=3.5, class_="away")


def _badge(cause: str, place: str, y: float, said: str) -> Markup:
    """A loss, as the first letter of its cause."""
    return element(
        "g",
        element("title", said),
        element("circle", cx=place, cy=y, r=7.5),
        element("text", cause[:1].upper(), x=place, y=y + 3.5),
        class_=f"lost {cause if cause.isalpha() else ''}",
    )
