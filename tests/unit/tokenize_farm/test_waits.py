"""What is waited for and since when; when silence is said."""

from uniaudio.tokenize_farm.waits import Silence, Waits


def test_only_those_that_wait_too_long_are_overdue_the_oldest_first() -> None:
    waits = Waits()
    for reference, begun in (("b", 20.0), ("a", 10.0), ("c", 50.0)):
        waits.begin(reference, begun)
    assert waits.overdue(51.0, 30.0) == ["a", "b"] and not waits.all_overdue(51.0, 30.0) and waits.all_overdue(80.0, 30.0)
    assert waits.described({"a": "one", "b": "two", "c": "three"}, 51.0) == "one (41 s), two (31 s), three (1 s)"


def test_nothing_waited_for_is_not_overdue_and_many_are_not_all_named() -> None:
    waits = Waits()
    assert not waits.all_overdue(1e9, 0.0) and waits.described({}, 0.0) == ""
    for i in range(6):
        waits.begin(i, float(i))
    assert waits.described({i: f"u{i}" for i in range(6)}, 6.0) == "u0 (6 s), u1 (5 s), u2 (4 s), u3 (3 s) and 2 more"


def test_the_longest_is_of_those_that_ended_not_of_those_given_up() -> None:
    waits = Waits()
    for reference in ("quick", "slow", "lost"):
        waits.begin(reference, 0.0)
    waits.end("quick", 2.0)
    waits.give_up("lost")
    assert waits.longest == 2.0 and waits.overdue(9.0, 0.0) == ["slow"]
    waits.end("slow", 9.0)
    assert waits.longest == 9.0 and waits.overdue(9.0, 0.0) == []


def test_silence_is_said_after_patience_and_whenever_it_has_doubled() -> None:
    silence = Silence(60.0)
    silence.heard(100.0)
    said = [now for now in range(100, 700) if silence.broken_by(float(now)) is not None]
    assert said == [160, 220, 340, 580]
    silence.heard(700.0)
    assert silence.broken_by(759.0) is None and silence.broken_by(761.0) == 61.0
    assert Silence(60.0).broken_by(100.0, least=300.0) is None
