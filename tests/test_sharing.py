"""Who may call a model: engines together, others alone, each thread within its own."""

import threading

import pytest

from cartridges.sharing import _ALONE, _CALLS, alone, together

CONFIG = object()


def started(target):
    thread = threading.Thread(target=target)
    thread.start()
    return thread


def entering(context, entered, leave):
    """A thread that says when it is within, and stays until it is told to leave."""

    def run():
        with context(CONFIG):
            entered.set()
            leave.wait(20)

    return started(run)


@pytest.mark.parametrize(("first", "second", "waits"), [(together, together, False), (alone, alone, True)])
def test_one_kind_among_itself(first, second, waits):
    entered, leave = [threading.Event() for _ in range(2)], threading.Event()
    threads = [entering(first, entered[0], leave)]
    assert entered[0].wait(20)
    threads.append(entering(second, entered[1], leave))
    assert entered[1].wait(0.2 if waits else 20) is not waits
    leave.set()
    for thread in threads:
        thread.join(20)
    assert entered[1].is_set() and not _CALLS and not _ALONE


@pytest.mark.parametrize(("first", "second"), [(together, alone), (alone, together)])
def test_the_two_kinds_take_turns(first, second):
    entered, leave = [threading.Event() for _ in range(2)], threading.Event()
    threads = [entering(first, entered[0], leave)]
    assert entered[0].wait(20)
    threads.append(entering(second, entered[1], leave))
    assert not entered[1].wait(0.2)
    leave.set()
    for thread in threads:
        thread.join(20)
    assert entered[1].is_set() and not _CALLS and not _ALONE


def test_a_thread_does_one_within_the_other_while_another_waits():
    done, entered, leave = [], threading.Event(), threading.Event()

    def nested():
        with together(CONFIG):
            entered.set()
            leave.wait(20)
            with together(CONFIG):
                done.append("together")
        with alone(CONFIG), together(CONFIG), alone(CONFIG):
            done.append("alone")

    thread = started(nested)
    assert entered.wait(20)
    waiting, go_on = threading.Event(), threading.Event()
    other = entering(alone, waiting, go_on)
    assert not waiting.wait(0.1)  # no call may begin now, but for one within another
    leave.set()
    assert waiting.wait(20) and done == ["together"]
    go_on.set()
    for each in (thread, other):
        each.join(20)
    assert done == ["together", "alone"] and not _CALLS and not _ALONE


@pytest.mark.parametrize("context", [together, alone])
def test_an_error_ends_the_turn(context):
    with pytest.raises(ZeroDivisionError), context(CONFIG):
        _ = 1 / 0
    assert not _CALLS and not _ALONE


def test_a_call_that_may_not_begin_in_time_leaves_nothing_behind():
    entered, leave = threading.Event(), threading.Event()
    thread = entering(alone, entered, leave)
    assert entered.wait(20)
    with together(CONFIG, 0.05) as may:
        assert may is False and not _CALLS
    leave.set()
    thread.join(20)
    with together(CONFIG, 0.05) as may:
        assert may is True
    assert not _CALLS and not _ALONE
