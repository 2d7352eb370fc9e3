"""Two-operand and one-operand integer arithmetic and logic: ADD OR ADC SBB AND SUB XOR CMP TEST INC DEC NEG NOT."""

from ..build import Group, compiled
from .flags import SETTERS, cf, of, set_cf_of
from .operand import LOAD, PUT, WIDTHS, done, dst, src

group = Group("alu", __name__)


def _binary(width, combine, flags, writes=True):
    """dst = combine(s, dst, src); `flags` names the rule: 0 add, 1 sub, 2 logic."""
    load, put = LOAD[width], PUT[width]
    after_add, after_sub, after_logic, _ = SETTERS[width]

    def handler(s, r):
        d = dst(r)
        a, b = load(d), load(src(r))
        result = combine(s, a, b)
        if flags == 0:
            after_add(s, a, b, result)
        elif flags == 1:
            after_sub(s, a, b, result)
        else:
            after_logic(s, result)
        if writes:
            put(d, result)
        return done(r)

    return handler


def _plus(s, a, b):
    return a + b


def _plus_carry(s, a, b):
    return a + b + cf(s)


def _minus(s, a, b):
    return a - b


def _minus_borrow(s, a, b):
    return a - b - cf(s)


def _or(s, a, b):
    return a | b


def _and(s, a, b):
    return a & b


def _xor(s, a, b):
    return a ^ b


ADD, SUB, LOGIC = 0, 1, 2
BINARY = {
    "add": (_plus, ADD),
    "or": (_or, LOGIC),
    "adc": (_plus_carry, ADD),
    "sbb": (_minus_borrow, SUB),
    "and": (_and, LOGIC),
    "sub": (_minus, SUB),
    "xor": (_xor, LOGIC),
}


def _one_more(width, step):
    """INC and DEC: as ADD and SUB of 1, but CF stays."""
    load, put = LOAD[width], PUT[width]
    after_add, after_sub, _, _ = SETTERS[width]

    def handler(s, r):
        d = dst(r)
        a, carry = load(d), cf(s)
        result = a + step
        if step == 1:
            after_add(s, a, 1, result)
        else:
            after_sub(s, a, 1, result)
        set_cf_of(s, carry, of(s))
        put(d, result)
        return done(r)

    return handler


def _neg(width):
    load, put = LOAD[width], PUT[width]
    after_sub = SETTERS[width][1]

    def handler(s, r):
        d = dst(r)
        b = load(d)
        after_sub(s, 0, b, -b)
        put(d, -b)
        return done(r)

    return handler


def _not(width):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        d = dst(r)
        put(d, ~load(d))
        return done(r)

    return handler


for _width in WIDTHS:
    for _name, (_combine, _flags) in BINARY.items():
        group.add(_binary(_width, compiled(_combine), _flags), f"{_name}{_width}")
    group.add(_binary(_width, compiled(_minus), SUB, writes=False), f"cmp{_width}")
    group.add(_binary(_width, compiled(_and), LOGIC, writes=False), f"test{_width}")
    group.add(_one_more(_width, 1), f"inc{_width}")
    group.add(_one_more(_width, -1), f"dec{_width}")
    group.add(_neg(_width), f"neg{_width}")
    group.add(_not(_width), f"not{_width}")
