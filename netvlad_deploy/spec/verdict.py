"""The outcome of a check."""

import enum
from collections.abc import Iterable


class Verdict(str, enum.Enum):
    """Outcome of a check.

    NOT_RUN is never a pass. Neither is NOT_JUDGED: the check ran, but it could not have failed on its input.

    >>> Verdict.combine([Verdict.PASS, Verdict.NOT_RUN]).value
    'NOT_RUN'
    """

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_RUN = "NOT_RUN"
    NOT_JUDGED = "NOT_JUDGED"

    @staticmethod
    def combine(verdicts: "Iterable[Verdict]") -> "Verdict":
        """Return the verdict of several checks together.

        FAIL if any failed, else NOT_RUN if any did not run or there are none, else PASS if any passed, else NOT_JUDGED.
        """
        seen = set(verdicts) or {Verdict.NOT_RUN}
        return next(each for each in (Verdict.FAIL, Verdict.NOT_RUN, Verdict.PASS, Verdict.NOT_JUDGED) if each in seen)
