"""The tables of docs/input.md, from the lists of fields beside each reader. `python -m tests.input_page` writes them there."""

import json
import re
from pathlib import Path

from eosjax.data.labels import cyclevla, original
from eosjax.data.lerobot import info as lerobot_info
from eosjax.data.rlds import info
from eosjax.fields import Fields
from eosjax.models.hf import adapter_config, config_fields
from eosjax.reports.tables import markdown
from eosjax.serving import mapping

PAGE = Path(__file__).parents[1] / "docs" / "input.md"
# By the words behind `fields:` in the page.
TABLES: dict[str, Fields] = {
    "config.json": config_fields.CONFIG_FIELDS,
    "config.json, text_config": config_fields.TEXT_FIELDS,
    "config.json, text_config.rope_parameters": config_fields.ROPE_FIELDS,
    "preprocessor_config.json": config_fields.PREPROCESSOR_FIELDS,
    "adapter_config.json": adapter_config.ADAPTER_FIELDS,
    "dataset_info.json": info.DATASET_INFO,
    "dataset_info.json, splits": info.SPLIT_INFO,
    "labels original and flat, an episode": original.BODY,
    "labels original and flat, timestep_labels": original.ENTRY,
    "meta/info.json": lerobot_info.INFO_FIELDS,
    "meta/info.json, features": lerobot_info.FEATURE_FIELDS,
    "labels cyclevla, an episode": cyclevla.EPISODE,
    "labels cyclevla, metadata": cyclevla.METADATA,
    "labels cyclevla, chunks": cyclevla.CHUNK,
    "keys of an observation": mapping.FIELDS,
}
_ORDER = ("honoured", "refused", "harmless")
_PLACE = re.compile(r"(<!-- fields: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def places(text: str) -> list[str]:
    """The tables that a page has places for."""
    return [match[2] for match in _PLACE.finditer(text)]


def with_tables(text: str) -> str:
    """The page with each table as the code gives it; `KeyError` for a place of an unknown table."""
    return _PLACE.sub(lambda match: f"{match[1]}{field_table(TABLES[match[2]])}\n{match[3]}", text)


def field_table(fields: Fields) -> str:
    """A row for each field, those that are honoured first; fields with the same words share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for field in sorted(fields.values(), key=lambda each: _ORDER.index(each.treatment)):
        excepted = f" except for {', '.join(f'`{json.dumps(value)}`' for value in field.accepts)}" if field.accepts else ""
        rows.setdefault((field.treatment + excepted, field.note), []).append(f"`{field.name}`")
    return markdown([("field", "treatment", "note"), *((", ".join(names), *words) for words, names in rows.items())])


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
