"""Debug registers, breakpoints and single step (SDM vol. 3, ch. 18)."""

from ..build import Group

group = Group("debug", __name__)
