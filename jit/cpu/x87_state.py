"""x87 moves, constants, control and environment."""

from ..build import Group

group = Group("x87_state", __name__)
