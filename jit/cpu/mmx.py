"""MMX."""

from ..build import Group

group = Group("mmx", __name__)
