"""Tells whether times that are text sort by time."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

CLOCK = r"[T ][0-9]{2}(?::?[0-9]{2}){0,2}"
ISO_8601 = rf"^(?P<time>[0-9]{{4}}-?[0-9]{{2}}(?:-?[0-9]{{2}}(?:{CLOCK})?)?)(?:[.,][0-9]+)?(?P<zone>Z|[+-][0-9:]+)?$"


def unsorted_times(values: pa.ChunkedArray) -> list[str]:
    """Returns an example of text that does not sort by time, or two that do not sort together; [] if all text does.

    Text sorts by time if it is ISO 8601 in one form, such as "2026-05-01 10:00", and of one zone.
    """
    values = values.cast(pa.string()).drop_null()
    found = pc.extract_regex(values, ISO_8601)
    if found.null_count:
        return [values.filter(found.is_null())[0].as_py()]
    forms = pc.binary_join_element_wise(
        pc.replace_substring_regex(pc.struct_field(found, "time"), "[0-9]", "0"), pc.struct_field(found, "zone"), ""
    )
    return [values[forms.index(form).as_py()].as_py() for form in forms.unique()[:2]] if len(forms.unique()) > 1 else []
