"""Refusals are counted in full and shown in part."""

from __future__ import annotations

from node.refusals import BURST, MOST_KINDS, PER_SECOND, SUMMARY_SECONDS, Refusals


class Log:
    """What was told, and a clock to turn."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[tuple[str, str, str, int]] = []
        self.refusals = Refusals(lambda *line: self.lines.append(line), lambda: self.now)

    @property
    def told(self) -> int:
        return sum(times for *_, times in self.lines)


def test_a_few_are_shown_as_they_come() -> None:
    log = Log()
    for number in range(3):
        log.refusals("bo", "a wire", f"garbage {number}")
    assert log.lines == [("bo", "a wire", f"garbage {number}", 1) for number in range(3)]


def test_a_flood_shows_few_lines_and_loses_no_count() -> None:
    log = Log()
    seconds, each = 30, 1000
    for second in range(seconds):
        for number in range(each):
            log.refusals("bo" if number % 4 else "cy", "credit for 4 items", "more")
            log.now += 1 / each
        log.refusals.beat()
        assert len(log.lines) <= BURST + PER_SECOND * (second + 1) + 2 * ((second + 1) / SUMMARY_SECONDS + 1)
    assert log.refusals.total == seconds * each
    log.refusals.sum_up()
    assert log.told == log.refusals.total
    most = max(log.lines, key=lambda line: line[3])
    assert most[:3] == ("bo", "credit for 4 items", "more")


def test_after_a_flood_a_single_refusal_is_shown_again() -> None:
    log = Log()
    for _ in range(1000):
        log.refusals("bo", "a wire", "garbage")
    log.now += 2
    log.refusals("cy", "a frame signed by cy", "a false signature")
    assert log.lines[-1] == ("cy", "a frame signed by cy", "a false signature", 1)


def test_any_number_of_invented_names_takes_a_bounded_memory() -> None:
    log = Log()
    for number in range(10 * MOST_KINDS):
        log.refusals(f"key {number}", "a CURVE key of the manifest", "a stranger's")
    assert len(log.refusals.counts) == MOST_KINDS + 1
    assert log.refusals.total == 10 * MOST_KINDS
    assert log.refusals.counts["others", "something else"] == 9 * MOST_KINDS
    log.refusals.sum_up()
    assert log.told == 10 * MOST_KINDS
