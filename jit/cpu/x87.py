"""x87 arithmetic (SDM vol. 1, ch. 8)."""

from ..build import Group

group = Group("x87", __name__)
