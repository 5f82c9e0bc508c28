"""Sub-step labels: importers of the known formats into one table of segments, the verified join with frames, an exporter."""

from eosjax.data.labels.export import canonical, export_labels
from eosjax.data.labels.formats import FORMATS, import_labels
from eosjax.data.labels.join import Episodes, Labels, join_labels, task_labels, unusable_episodes
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
    "import_labels",
    "join_labels",
    "make_table",
    "task_labels",
    "unusable_episodes",
]
