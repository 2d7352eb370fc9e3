"""Instructions that 64-bit mode has not: BCD arithmetic, PUSHA, BOUND, segment pushes."""

from ..build import Group

group = Group("legacy", __name__)
