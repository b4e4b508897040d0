"""Fuzz one parser guided by coverage, with atheris: what reaches new lines of the package is damaged further.

Half of the damage is libFuzzer's own, half is that of `mutations`, which knows zip archives and pickles.
"""

import json
import os
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.fuzz.harness import Campaign, limit_memory
from tools.fuzz.mutations import mutated

LARGEST_GROWTH = 4
"""A damaged file is at most so many times as long as the longest sound one."""


def guide(atheris: Any, campaign: Campaign, seconds: float, report: Callable[[str], None]) -> None:
    """Fuzz for so long, report the outcome as JSON, and end this process: libFuzzer does not return."""
    corpus = campaign.folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(campaign.seeds):
        (corpus / str(number)).write_bytes(content)
    limit_memory()
    end = time.monotonic() + seconds

    def give(content: bytes) -> None:
        if time.monotonic() > end:
            report(json.dumps(asdict(campaign.outcome)))
            os._exit(0)
        campaign.give(content)

    def damage(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if not content or rng.random() < 0.5:
            return bytes(atheris.Mutate(content, most))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mutated(rng, [content])[:most]

    longest = LARGEST_GROWTH * max(map(len, campaign.seeds))
    options = ("-timeout=0", "-rss_limit_mb=0", "-detect_leaks=0", "-verbosity=0", f"-max_len={longest}", "-seed=1")
    atheris.Setup(["fuzz", *options, str(corpus)], give, custom_mutator=damage)
    atheris.Fuzz()
