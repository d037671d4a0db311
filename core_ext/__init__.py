"""The native core: ledger, journal, codes and MACs. Knows no task, no socket and no protocol."""

from core_ext import mac
from core_ext._batch import Batch
from core_ext._counters import Counters, Histogram
from core_ext._journal import Journal, Reader
from core_ext._ledger import Ledger
from core_ext._records import Records
from core_ext._wheel import Wheel
from core_ext.results import DE39, Result

__all__ = [
    "DE39",
    "Batch",
    "Counters",
    "Histogram",
    "Journal",
    "Ledger",
    "Reader",
    "Records",
    "Result",
    "Wheel",
    "mac",
]
