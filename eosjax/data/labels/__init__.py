"""Sub-step labels: importers of the known formats into one table of segments, the verified join with frames, an exporter."""

from eosjax.data.labels.export import canonical, export_labels
from eosjax.data.labels.formats import FORMATS, formats_of, import_labels
from eosjax.data.labels.join import Episodes, Labels, join_labels, task_labels, unusable_episodes
from eosjax.data.labels.lerobot_export import export_lerobot
from eosjax.data.labels.table import LEFT_OUT_BY, LabelError, Problem, Segment, SegmentTable, make_table

__all__ = [
    "FORMATS",
    "LEFT_OUT_BY",
    "Episodes",
    "LabelError",
    "Labels",
    "Problem",
    "Segment",
    "SegmentTable",
    "canonical",
    "export_labels",
    "export_lerobot",
    "formats_of",
    "import_labels",
    "join_labels",
    "make_table",
    "task_labels",
    "unusable_episodes",
]
