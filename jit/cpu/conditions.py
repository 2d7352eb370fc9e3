"""The sixteen condition codes (SDM vol. 1, appendix B), shared by Jcc, SETcc and CMOVcc.

CONDITIONS[n](s) is 1 when condition n holds: O NO B NB Z NZ BE NBE S NS P NP L NL LE NLE.
"""

from ..build import compiled
from .flags import cf, of, pf, sf, zf


@compiled
def _below_or_equal(s):
    return cf(s) | zf(s)


@compiled
def _less(s):
    return sf(s) ^ of(s)


@compiled
def _less_or_equal(s):
    return zf(s) | (sf(s) ^ of(s))


def _negated(condition):
    @compiled
    def negated(s):
        return condition(s) ^ 1

    return negated


_POSITIVE = (of, cf, zf, _below_or_equal, sf, pf, _less, _less_or_equal)
CONDITIONS = tuple(form for condition in _POSITIVE for form in (condition, _negated(condition)))
