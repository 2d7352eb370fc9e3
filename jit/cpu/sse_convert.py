"""SSE conversions between integers and floating point."""

from ..build import Group

group = Group("sse_convert", __name__)
