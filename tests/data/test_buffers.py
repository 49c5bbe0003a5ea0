"""Memory is used again, and never while somebody looks at it."""

import gc
import threading

import numpy as np

from scfm.data.buffers import BufferPool


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_nothing_refers_to_it():
    pool = BufferPool()
    first = pool.empty(1_000, np.int32)
    where = address(first)
    assert address(pool.empty(1_000, np.int32)) != where
    del first
    again = pool.empty((10, 20), np.float32)  # the smallest that fits: either of the two
    assert again.shape == (10, 20)
    assert again.dtype == np.float32
    assert pool.idle_bytes > 0


def test_a_view_keeps_the_memory():
    pool = BufferPool()
    array = pool.empty(1_000, np.int64)
    array[:] = 7
    view = array[10:20].reshape(2, 5)
    del array
    gc.collect()
    others = [pool.empty(1_000, np.int64) for _ in range(5)]
    for other in others:
        other[:] = 0
    assert (view == 7).all()


def test_no_two_hold_the_same_memory_in_threads():
    pool, wrong = BufferPool(), []

    def work(mark: int) -> None:
        for _ in range(300):
            array = pool.empty(256, np.int64)
            array[:] = mark
            if (array != mark).any():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_few_idle_pieces_are_kept():
    pool = BufferPool(kept=2)
    arrays = [pool.empty(n, np.uint8) for n in (10, 2_000, 300, 40)]
    arrays.clear()
    pool.empty(10_000, np.uint8)
    pool._idle = [memory for memory in pool._idle if len(memory) < 10_000]
    assert sorted(len(memory) for memory in pool._idle) == [300 + 37, 2_000 + 250]


def test_nothing_is_an_array_too():
    assert BufferPool().empty(0, np.int32).shape == (0,)
