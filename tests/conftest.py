"""Before torch is imported: one thread.  The models here are tiny, and runs side by side must not fight for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
