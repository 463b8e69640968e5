"""Calls from other threads reach the loop in order, all that are there behind one wake-up."""

import asyncio
import threading

from cartridges.serving.mailbox import Mailbox


def test_calls_are_made_in_order_on_the_loops_thread():
    async def listen() -> tuple[list[int], set[int]]:
        box, heard, threads = Mailbox(asyncio.get_running_loop()), [], set()

        def hear(number: int) -> None:
            heard.append(number)
            threads.add(threading.get_ident())

        def send() -> None:
            for number in range(1000):
                box.post(hear, number)

        sender = threading.Thread(target=send)
        sender.start()
        while len(heard) < 1000:
            await asyncio.sleep(0.001)
        sender.join()
        return heard, threads

    heard, threads = asyncio.run(asyncio.wait_for(listen(), 20))
    assert heard == list(range(1000))
    assert threads == {threading.get_ident()}


def test_what_comes_before_the_loop_looks_wakes_it_once():
    async def count() -> tuple[int, list[int]]:
        loop, heard, num_woken = asyncio.get_running_loop(), [], 0
        box, wake = Mailbox(loop), loop.call_soon_threadsafe

        def counted(*args):
            nonlocal num_woken
            num_woken += 1
            return wake(*args)

        loop.call_soon_threadsafe = counted
        for burst in range(3):
            for number in range(32):
                box.post(heard.append, 32 * burst + number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return num_woken, heard

    assert asyncio.run(count()) == (3, list(range(96)))


def test_a_call_may_post_another():
    async def chain() -> list[int]:
        box, heard = Mailbox(asyncio.get_running_loop()), []

        def hear(number: int) -> None:
            heard.append(number)
            if number < 5:
                box.post(hear, number + 1)

        box.post(hear, 0)
        while len(heard) < 6:
            await asyncio.sleep(0)
        return heard

    assert asyncio.run(asyncio.wait_for(chain(), 20)) == [0, 1, 2, 3, 4, 5]


def test_nobody_listens_once_the_loop_is_closed():
    loop = asyncio.new_event_loop()
    box = Mailbox(loop)
    loop.close()
    box.post(print, "nobody hears this")
