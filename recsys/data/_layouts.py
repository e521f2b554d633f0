"""The columns of Criteo's and Avazu's click logs."""

from __future__ import annotations

from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._schema import Column, Schema

__all__ = ["LAYOUTS", "avazu_schema", "criteo_schema"]

_AVAZU = (
    "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id",
    "device_ip", "device_model", "device_type", "device_conn_type", *(f"C{number}" for number in range(14, 22)),
)  # fmt: skip


def criteo_schema(numbers: str = "log", min_count: int = 10) -> Schema:
    """Criteo's display advertising log: label, 13 counts I1-I13 and 26 hashed categories C1-C26, by tabs, no header.

    Rows are in the order of time. Empty fields are missing values: a token of its own in a category, 0 in a count.

    Args:
        numbers: what counts become: ``"log"`` (ln(1 + x) as in DLRM, Naumov et al. 2019), ``"log_standard"`` (that,
            with mean 0 and deviation 1), or ``"buckets"`` (tokens floor(ln(x) ** 2), as the Criteo contest's winners).
        min_count: rarer tokens are unseen ones; BARS' Criteo_x4_001 (Zhu et al., SIGIR 2022) has 10.

    Raises:
        DataError: ``numbers`` is another word.
    """
    if numbers not in ("log", "log_standard", "buckets"):
        raise DataError(f"numbers must be 'log' or 'log_standard' or 'buckets', got {numbers!r}")
    counts = [f"I{number}" for number in range(1, 14)]
    categories = [f"C{number}" for number in range(1, 27)]
    if numbers == "buckets":
        first = [Column(name, buckets="log_squared") for name in counts]
    else:
        first = [Column(name, "float", transform=numbers) for name in counts]
    columns = (*first, *map(Column, categories))
    return Schema(
        columns, "label", separator="\t", quote="", header=("label", *counts, *categories), min_count=min_count
    )


def avazu_schema(min_count: int = 2) -> Schema:
    """Avazu's click log: a CSV file with a header; the hour, written YYMMDDHH, becomes hour, weekday and weekend.

    The column ``id``, another for every row, is not used.

    Args:
        min_count: rarer tokens are unseen ones.
    """
    times = [
        Column(name, source="hour", derive=name, time_format="%y%m%d%H") for name in ("hour", "weekday", "weekend")
    ]
    return Schema((*times, *map(Column, _AVAZU)), "click", time="hour", min_count=min_count)


LAYOUTS = {"avazu": avazu_schema, "criteo": criteo_schema}
