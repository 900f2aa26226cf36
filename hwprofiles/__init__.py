"""Hardware profiles: one YAML file per device, with source and date of every number."""

from hwprofiles.dtypes import DTYPES, Dtype, canonical_dtype, dtype_bytes
from hwprofiles.registry import alias_names, list_profiles, load_profile
from hwprofiles.schema import (
    Datasheet,
    EndToEnd,
    HardwareProfile,
    Host,
    Law,
    Memory,
    Points,
    Price,
    Residual,
    ServingCosts,
    Source,
)

__all__ = [
    "DTYPES",
    "Datasheet",
    "Dtype",
    "EndToEnd",
    "HardwareProfile",
    "Host",
    "Law",
    "Memory",
    "Points",
    "Price",
    "Residual",
    "ServingCosts",
    "Source",
    "alias_names",
    "canonical_dtype",
    "dtype_bytes",
    "list_profiles",
    "load_profile",
]
