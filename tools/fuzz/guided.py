"""Fuzz one parser guided by coverage, with atheris: what reaches new lines of the package is damaged further.

Half of the damage is libFuzzer's own, half is that of `mutations`, which knows zip archives and pickles.
"""

import functools
import json
import os
import random
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from tools.fuzz.harness import Campaign, limit_memory
from tools.fuzz.mutations import mutated

LARGEST_GROWTH = 4
"""A damaged file is at most so many times as long as the longest sound one."""


Called = TypeVar("Called", bound=Callable[..., Any])


def ending(function: Called) -> Called:
    """Return the function, whose errors end this process at once: left to libFuzzer they would hang it at its exit."""

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException:  # noqa: BLE001 - whatever it is
            traceback.print_exc()
            os._exit(70)

    return called  # type: ignore[return-value]


def guide(atheris: Any, campaign: Campaign, seconds: float, report: Callable[[str], None]) -> None:
    """Fuzz for so long, report the outcome as JSON, and end this process: libFuzzer does not return."""
    corpus = campaign.folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(campaign.seeds):
        (corpus / str(number)).write_bytes(content)
    limit_memory()
    end = time.monotonic() + seconds

    @ending
    def give(content: bytes) -> None:
        if time.monotonic() > end:
            report(json.dumps(asdict(campaign.outcome)))
            os._exit(0)
        campaign.give(content)

    @ending
    def damage(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if not content or rng.random() < 0.5:
            return bytes(atheris.Mutate(content, most))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mutated(rng, content, campaign.seeds)[:most]

    longest = LARGEST_GROWTH * max(map(len, campaign.seeds))
    own = ("-timeout=0", "-rss_limit_mb=0", "-detect_leaks=0", "-use_value_profile=1", "-seed=1")
    options = (*own, f"-max_len={longest}", f"-artifact_prefix={campaign.folder}/")
    atheris.Setup(["fuzz", *options, str(corpus)], give, custom_mutator=damage)
    atheris.Fuzz()
