"""VEX-encoded integer and move instructions."""

from ..build import Group

group = Group("vex", __name__)
