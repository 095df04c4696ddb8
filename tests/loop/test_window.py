"""The window of asynchronous collection, against all orders in which rollouts may end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coterie.vocabulary import Rollout, RolloutState
from coterie_trainers.loop.window import Group, Window

ENDS = (RolloutState.SUCCEEDED, RolloutState.DEAD, RolloutState.CANCELLED)


def fill(window: Window, done: int, size: int, next_place: int) -> int:
    """Add groups while the window wants more; gives the next place."""
    while window.wants_more(done):
        window.add(Group(next_place, done, [f"{next_place}.{n}" for n in range(size)]))
        next_place += 1
    return next_place


def end(window: Window, *ids: str, state: RolloutState = RolloutState.SUCCEEDED) -> None:
    window.note([Rollout("t", id=id_, state=state) for id_ in ids])


@given(
    data=st.data(),
    per_step=st.integers(1, 4),
    steps=st.integers(1, 6),
    max_staleness=st.integers(1, 3),
    size=st.integers(1, 3),
    busy=st.integers(0, 30),
)
def test_no_group_is_lost_or_trained_twice_or_too_old_in_any_order(data, per_step, steps, max_staleness, size, busy):
    window = Window(per_step=per_step, steps=steps, max_staleness=max_staleness, busy=busy)
    trained: Counter[int] = Counter()
    place = 0
    for done in range(steps):
        place = fill(window, done, size, place)
        assert len(window.groups) <= (max_staleness + 1) * per_step
        while lacking := window.lacking(done):
            running = window.running
            assert lacking <= len(running)  # else it would be waited for in vain
            ended = data.draw(st.lists(st.sampled_from(running), min_size=lacking, max_size=len(running), unique=True))
            end(window, *ended, state=data.draw(st.sampled_from(ENDS)))
            place = fill(window, done, size, place)
        taken = window.take()
        assert len(taken) == per_step
        assert all(group.left == 0 and len(group.ended) == size for group in taken)
        assert max(done - group.enqueued for group in taken) <= max_staleness
        trained.update(group.place for group in taken)
    assert not window.groups
    assert trained == Counter(range(steps * per_step))


def test_a_step_trains_on_what_is_whole_first():
    window = Window(per_step=1, steps=9, max_staleness=2, busy=2)
    fill(window, 0, 1, 0)
    assert window.running == ["0.0", "1.0"]
    end(window, "1.0")
    assert window.lacking(0) == 0
    assert [group.place for group in window.take()] == [1]


def test_the_oldest_group_is_waited_for_when_its_time_has_come():
    window = Window(per_step=1, steps=9, max_staleness=1, busy=2)
    place = fill(window, 0, 1, 0)
    end(window, "1.0")
    assert [group.place for group in window.take()] == [1]
    place = fill(window, 1, 1, place)
    end(window, *[id_ for id_ in window.running if id_ != "0.0"])
    assert window.lacking(1) == 1
    end(window, "0.0")
    assert window.lacking(1) == 0
    assert [group.place for group in window.take()] == [0]


def test_no_more_is_enqueued_than_keeps_the_runner_busy():
    window = Window(per_step=2, steps=99, max_staleness=9, busy=10)
    fill(window, 0, 3, 0)
    assert len(window.running) == 12  # the first whole group beyond ten
    end(window, "0.0", "1.0", "2.0")
    assert window.wants_more(0)  # what counts is what runs


def test_no_more_is_enqueued_while_two_steps_are_whole():
    window = Window(per_step=2, steps=99, max_staleness=9, busy=4)
    place = fill(window, 0, 1, 0)
    end(window, *window.running)
    assert not window.wants_more(0)
    window.take()
    assert fill(window, 1, 1, place) == place + 4


def test_the_last_steps_leave_nothing_in_flight():
    window = Window(per_step=2, steps=3, max_staleness=5, busy=100)
    assert fill(window, 0, 1, 0) == 6
    assert not window.wants_more(2)
