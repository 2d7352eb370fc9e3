"""AVX floating point, FMA and F16C."""

from ..build import Group

group = Group("avx_float", __name__)
