"""The board without its groups: who gets which stage, and how it ends for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from tiny import study

from orchestrator import board
from orchestrator.board import MAX_ATTEMPTS, Board, Outcome

STAGE = study().stages[0]
SOON_S = 1.0

Scene = Coroutine[Any, Any, None]  # Any: as asyncio has it


def play(scene: Scene) -> None:
    asyncio.run(asyncio.wait_for(scene, 30))


async def soon(work: Coroutine[Any, Any, Outcome] | asyncio.Task[Outcome]) -> Outcome:
    return await asyncio.wait_for(work, SOON_S)


async def begun(work: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
    """Start something and let it come as far as it comes by itself."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0.02)
    return task


def test_a_stage_goes_to_a_group_and_its_end_to_all_who_posted_it() -> None:
    async def scene() -> None:
        there = Board()
        posts = [await begun(there.post(STAGE, "a", owner)) for owner in ("one", "two")]
        job = await soon(there.take(0))
        assert (job["kind"], job["key"], job["stage"]) == ("stage", "a", STAGE)
        await there.done(0, {"state": "done"})
        assert [await soon(post) for post in posts] == [{"state": "done"}] * 2

    play(scene())


def test_a_stage_that_was_given_up_is_not_tried_again_by_the_next_who_posts_it() -> None:
    async def scene() -> None:
        there = Board()
        post = await begun(there.post(STAGE, "poison", "one"))
        for _ in range(MAX_ATTEMPTS):
            assert (await soon(there.take(0)))["key"] == "poison"
        take = await begun(there.take(0))
        outcome = await soon(post)
        assert outcome["state"] == "failed"
        assert "killed 3 times" in outcome["reason"]
        assert await soon(there.post(STAGE, "poison", "two")) == outcome
        other = await begun(there.post(STAGE, "other", "two"))
        assert (await soon(take))["key"] == "other"
        await there.done(0, {"state": "done"})
        assert (await soon(other))["state"] == "done"

    play(scene())


def test_a_stage_that_failed_by_itself_is_tried_again() -> None:
    async def scene() -> None:
        there = Board()
        for attempt in range(2):
            post = await begun(there.post(STAGE, "a", f"trial-{attempt}"))
            assert (await soon(there.take(0)))["key"] == "a"
            await there.done(0, {"state": "failed", "reason": "no memory"})
            assert (await soon(post))["state"] == "failed"

    play(scene())


def test_what_one_rank_failed_over_is_told_when_the_stage_is_given_up() -> None:
    async def scene() -> None:
        there = Board()
        post = await begun(there.post(STAGE, "poison", "one"))
        for _ in range(MAX_ATTEMPTS):
            await soon(there.take(0))
            await there.hear(0, "another", "no matter")
            await there.hear(0, "poison", "a.mp4: changed since the run began")
        await begun(there.take(0))
        told = "a rank failed 3 times (a.mp4: changed since the run began); the stage is given up"
        assert (await soon(post))["reason"] == told

    play(scene())


def test_a_group_that_was_killed_while_idle_gets_the_next_stage_at_once() -> None:
    async def scene() -> None:
        there = Board()
        dead, alive = await begun(there.take(0)), await begun(there.take(0))
        assert await soon(dead) == {"kind": "wait"}
        await begun(there.post(STAGE, "a", "one"))
        assert (await soon(alive))["key"] == "a"
        assert there.taken[0].attempts == 1

    play(scene())


def test_the_takes_of_other_groups_are_left_alone() -> None:
    async def scene() -> None:
        there = Board()
        takes = [await begun(there.take(group)) for group in (0, 1)]
        for key in "ab":
            await begun(there.post(STAGE, key, "one"))
        assert {(await soon(take))["key"] for take in takes} == {"a", "b"}

    play(scene())


def test_a_group_asks_again_before_its_ranks_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(board, "PATIENCE_S", 0.1)

    async def scene() -> None:
        there = Board()
        assert await soon(there.take(0)) == {"kind": "wait"}
        await begun(there.post(STAGE, "a", "one"))
        assert (await soon(there.take(0)))["key"] == "a"

    play(scene())


def test_a_trial_that_was_stopped_between_two_stages_gets_no_second_one() -> None:
    async def scene() -> None:
        there = Board()
        post = await begun(there.post(STAGE, "first", "trial-1"))
        await soon(there.take(0))
        await there.done(0, {"state": "done"})
        assert (await soon(post))["state"] == "done"
        await there.release("trial-1")
        assert (await soon(there.post(STAGE, "second", "trial-1")))["state"] == "cancelled"
        assert not there.queue
        await begun(there.post(STAGE, "second", "trial-2"))
        assert (await soon(there.take(0)))["key"] == "second"

    play(scene())


def test_names_are_free_again_when_the_next_study_is_served() -> None:
    async def scene() -> None:
        there = Board()
        await there.release("trial-0")
        await there.serve("frames", "digest")
        await begun(there.post(STAGE, "a", "trial-0"))
        job = await soon(there.take(0))
        assert (job["key"], job["clips"]) == ("a", ("frames", "digest"))

    play(scene())


def test_a_job_that_nobody_wants_leaves_the_queue_and_is_stopped_where_it_runs() -> None:
    async def scene() -> None:
        there = Board()
        runs = await begun(there.post(STAGE, "runs", "one"))
        assert (await soon(there.take(0)))["key"] == "runs"
        assert await there.beat(0, "runs", (1, 2), {})
        waits = await begun(there.post(STAGE, "waits", "one"))
        await there.release("one")
        assert (await soon(waits))["state"] == "cancelled"
        assert not await there.beat(0, "runs", (1, 2), {})
        await there.done(0, {"state": "cancelled"})
        assert (await soon(runs))["state"] == "cancelled"

    play(scene())


def test_a_closed_board_sends_everybody_home() -> None:
    async def scene() -> None:
        there = Board()
        take = await begun(there.take(0))
        await there.close("the disk is full")
        assert await soon(take) == {"kind": "stop"}
        ended = {"state": "fatal", "reason": "the disk is full"}
        assert await soon(there.post(STAGE, "a", "one")) == ended

    play(scene())
