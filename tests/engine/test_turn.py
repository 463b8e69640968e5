"""The engine's lock: fair, re-entrant, and given up on time."""

import threading
import time

import pytest

from cartridges.engine.turn import Turn


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_whoever_asks_again_at_once_lets_others_in():
    turn, is_over = Turn(), threading.Event()

    def hog():
        while not is_over.is_set():
            with turn:
                time.sleep(0.002)

    thread = in_thread(hog)
    begin = time.monotonic()
    for _ in range(20):
        with turn:
            pass
    assert time.monotonic() - begin < 2
    is_over.set()
    thread.join(10)
    assert not thread.is_alive()


def test_those_who_wait_go_in_their_order():
    turn, order, threads = Turn(), [], []
    with turn:
        for number in range(6):

            def ask(number=number):
                with turn:
                    order.append(number)

            threads.append(in_thread(ask))
            while len(turn._line) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == list(range(6))


def test_one_thread_may_enter_twice_and_holds_it_until_both_are_left():
    turn, found = Turn(), []
    with turn:
        with turn:
            pass
        in_thread(lambda: found.append(turn.acquire(timeout=0.01))).join(10)
    in_thread(lambda: found.append(turn.acquire(timeout=1))).join(10)
    assert found == [False, True]


def test_who_gives_up_does_not_block_those_behind():
    turn, found = Turn(), []
    with turn:
        first = in_thread(lambda: found.append(turn.acquire(timeout=0.05)))
        while not turn._line:
            time.sleep(0.001)

        def second():
            with turn:
                found.append("second")

        thread = in_thread(second)
        first.join(10)
    thread.join(10)
    assert found == [False, "second"]


def test_only_the_holder_may_release():
    turn = Turn()
    with pytest.raises(RuntimeError, match="whose turn it is not"):
        turn.release()
