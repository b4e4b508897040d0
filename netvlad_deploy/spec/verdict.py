"""The outcome of a check."""

import enum
from collections.abc import Iterable


class Verdict(str, enum.Enum):
    """Outcome of a check.

    NOT_RUN is never a pass, and neither is NOT_JUDGED: the check ran, but nothing it saw could have failed it.
    """

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_RUN = "NOT_RUN"
    NOT_JUDGED = "NOT_JUDGED"

    @staticmethod
    def combine(verdicts: "Iterable[Verdict]") -> "Verdict":
        """Return the verdict of several checks.

        FAIL if any failed, else NOT_RUN if any did not run or there were none, else PASS if any passed, and
        NOT_JUDGED if none of them proves anything.
        """
        seen = set(verdicts)
        if not seen:
            return Verdict.NOT_RUN
        return next(each for each in (Verdict.FAIL, Verdict.NOT_RUN, Verdict.PASS, Verdict.NOT_JUDGED) if each in seen)
