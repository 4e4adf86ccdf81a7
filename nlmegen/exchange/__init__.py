"""Exchange with other programs: NONMEM's output read back as a column of a comparison."""

from .nonmem_run import NonmemRun as NonmemRun
from .nonmem_run import read_nonmem_run as read_nonmem_run
